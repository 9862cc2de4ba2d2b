#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Picks the k experts with the largest score of each token. Equal scores: the smaller expert first.
// softmax: scores are softmax(logits) over all E; sigmoid: 1 / (1 + exp(-logits)). weights are the picked
// scores, in descending order, divided by their sum where normalize is set, times scale. Bound of a weight,
// relative, with u = 2^-24: sigmoid 16 u; softmax (16 + E + 2 * (largest logit - its logit)) u, because the
// argument of exp rounds in proportion to itself and the sum has E terms; k u more with normalize. At most
// 2^-126 more where a unit flushes. Picks may differ from the reference's only between scores closer than
// that, and never between equal logits.
struct MoeRoute {
  enum class Kind : uint8_t { kSoftmax, kSigmoid };
  Tensor logits;  // F32 [T, E]
  Kind kind = Kind::kSoftmax;
  bool normalize = false;
  float scale = 1.0f;
  Tensor ids;      // I32 [T, k], k = its last dimension, 1 <= k <= E
  Tensor weights;  // F32 [T, k]

  void check() const;
  double flops() const;
  double bytes() const;
};

// Sorts (token, pick) pairs by expert, tokens ascending inside an expert: row places[t, j] of sorted is x[t].
// Exact.
struct MoePermute {
  Tensor x;       // F32 [T, C], rows contiguous
  Tensor ids;     // I32 [T, k], each in [0, E)
  Tensor sorted;  // F32 [T * k, C], rows contiguous
  Tensor counts;  // I32 [E]
  Tensor places;  // I32 [T, k]
  Tensor workspace;

  void check() const;
  double flops() const { return 0; }
  double bytes() const;
};

// y[t] = residual[t] + sum_j weights[t, j] * sorted[places[t, j]], j ascending. y may alias residual.
// Bound: gamma_(k+1) * (|residual| + sum |weights * sorted|).
struct MoeCombine {
  Tensor sorted;    // F32 [T * k, C], rows contiguous
  Tensor places;    // I32 [T, k]
  Tensor weights;   // F32 [T, k]
  Tensor residual;  // F32 [T, C], rows contiguous, or absent
  Tensor y;         // F32 [T, C], rows contiguous

  void check() const;
  double flops() const;
  double bytes() const;
};

// Gradient of MoeRoute's weights by its logits; the picks are constants. Of a token, with q_j the scores as
// they enter the weights (after their division by the picks' sum where normalize is set, before scale),
// g_j = scale * dweights[j], S = sum_j q_j * g_j over the picks, j ascending, and f_j = 1 - the sigmoid:
//   softmax:             dlogits[e] = q_e (g_e - S), with g_e = 0 where e is not picked
//   softmax, normalize:  dlogits[e] = q_e (g_e - S) where e is picked, else 0
//   sigmoid:             dlogits[e] = q_e f_e g_e where e is picked, else 0
//   sigmoid, normalize:  dlogits[e] = q_e f_e (g_e - S) where e is picked, else 0
// Bound, with r_e MoeRoute's relative bound of e's weight, f_e = 1 for softmax, A = sum_j q_j |g_j| and
// R = sum_j r_j q_j |g_j| (both 0 where there is no S), k picks and u = 2^-24:
//   q_e f_e ((r_e + (k + 4) u) (|g_e| + A) + R) + 2^-126 ((k + 4) (1 + |scale|) + |g_e| + A + sum_j |g_j|)
//   sigmoid: + 17 u q_e (|g_e| + A + R), for 1 - the sigmoid, whose error does not shrink with it
struct MoeRouteBackward {
  Tensor logits;  // F32 [T, E], of the forward pass
  MoeRoute::Kind kind = MoeRoute::Kind::kSoftmax;
  bool normalize = false;
  float scale = 1.0f;
  Tensor ids;       // I32 [T, k], of the forward pass: each in [0, E), none twice: the producer's duty
  Tensor dweights;  // F32 [T, k]
  Tensor dlogits;   // F32 [T, E], rows contiguous; overlaps nothing

  void check() const;
  double flops() const;
  double bytes() const;
};

// Gradient of MoePermute: dx[t] = sum_j dsorted[places[t, j]], j ascending (+ dx as it was, which comes
// first, with add_dx). Bound: gamma_k * (sum_j |dsorted| + |dx before|) + k * 2^-126.
struct MoePermuteBackward {
  Tensor dsorted;  // F32 [T * k, C], rows contiguous
  Tensor places;   // I32 [T, k], of the forward pass
  Tensor dx;       // F32 [T, C], rows contiguous; overlaps nothing
  bool add_dx = false;

  void check() const;
  double flops() const;
  double bytes() const;
};

// Gradients of MoeCombine (and of its residual, which is dy itself):
//   dsorted[places[t, j]] = weights[t, j] * dy[t];  dweights[t, j] = dy[t] . sorted[places[t, j]]
// The product's order is that of C alone. Bounds: u * |dsorted| + 2^-126 * (1 + |weight| + |dy|) and
// gamma_(C + 1) * sum_c |dy sorted| + 2^-126 * (C + sum_c (|dy| + |sorted|)).
struct MoeCombineBackward {
  Tensor dy;        // F32 [T, C], rows contiguous
  Tensor sorted;    // F32 [T * k, C], rows contiguous, of the forward pass
  Tensor places;    // I32 [T, k], each of [0, T * k) once: the producer's duty
  Tensor weights;   // F32 [T, k]
  Tensor dsorted;   // F32 [T * k, C], rows contiguous
  Tensor dweights;  // F32 [T, k]; no result overlaps anything

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
