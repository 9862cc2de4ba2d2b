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

}  // namespace qiao
