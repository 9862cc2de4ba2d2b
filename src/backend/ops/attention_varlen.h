#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Attention over sequences packed one after the other, without a cache (encoders, training). Sequence s
// owns rows [starts[s], starts[s + 1]) of q, k, v and out; each of its queries sees all of its keys, or with
// `causal` those at and before its own place, of which `window` > 0 leaves the last `window`.
//   score_j = scale * q·k_j + bias[h, j - i + M - 1] of query i, and with a soft-cap c * tanh(that / c)
//   out = sum_j exp(score_j - max) v_j / sum_j exp(score_j - max)
// Causal results without bias are the bits of kv_write and AttentionPaged over F32 pages, whatever their
// chunks. Query head h reads key/value head h / (H / G). Accumulation is F32, in an order that depends on
// the sequence's length (causal: on the query's place and the window) and the head alone, never on what is
// packed beside it: keys in ascending blocks of a fixed size. Bound, with n keys:
// (exp(2 gamma_(D+16) * B) - 1 + gamma_(2n+16)) * sum_j p_j |v_j| + 2^-126, where
// B = max_j (|scale| (|q|·|k_j|) + |bias|) and p_j are the probabilities; derived as for AttentionPaged.
// log_sum_exp errs by gamma_(D+16) * B + gamma_(2n+16) + u |log_sum_exp|: a score's error moves it by no
// more, the sum's relative error by that, and it is rounded once.
//
// That is kF32. In kBF16 q, k, v and the weights exp(score - max) may be rounded to BF16 (nearest even, by
// r = 2^-8) before a product; sums, that of the weights too, are of F32 and of weights as they were. A chip
// that rounds them has, causal and without bias, the bits of kv_write and AttentionPaged in kBF16 over pages
// of BF16; one may as well compute as in kF32. Bounds, derived as AttentionPaged's with k and v rounded too:
// (exp(2 E) (1 + r)^2 (1 + gamma_(2n+16)) - 1) * sum_j p_j |v_j| + 2^-126, with a score's error
// E = ((1 + r)^2 (1 + gamma_(D+16)) - 1) * B; log_sum_exp's with E in place of gamma_(D+16) * B.
struct AttentionVarlen {
  Tensor q;       // F32 [T, H, D], last dimension contiguous
  Tensor k, v;    // F32 [T, G, D], last dimension contiguous; H a multiple of G
  Tensor starts;  // I32 [S + 1], ascending from 0 to T: the producer's duty
  float scale = 1.0f;
  // F32 [H, 2M - 1], by distance (T5's and MPNet's relative positions), or absent: none. No sequence has more
  // than M tokens: the producer's duty.
  Tensor bias;
  bool causal = false;
  int64_t window = 0;     // 0: unlimited; of causal attention
  float soft_cap = 0.0f;  // 0: none
  // F32 [T, H] or absent: the logarithm of each query's sum_j exp(score_j), for the way back.
  Tensor log_sum_exp;
  Tensor out;                       // F32 [T, H, D], last dimension contiguous; overlaps nothing
  Compute compute = Compute::kF32;  // or kBF16; its way back's too (AttentionVarlenBackward)
  Tensor workspace;                 // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  // The caller tells the (query, key) pairs, for benches: starts lie on the device.
  double flops(int64_t pairs) const;
  double bytes() const;
};

// Gradients of AttentionVarlen without bias. With p_j = exp(score_j - log_sum_exp), dp_j = dout · v_j,
// delta = dout · out, and ds_j = p_j (dp_j - delta) times the soft-cap's slope (1 - (score_j / c)^2):
//   dq = scale * sum_j ds_j k_j;  dk_j = scale * sum over queries of ds q;  dv_j = sum over queries of p dout
// where the queries of all heads of a group add up in dk and dv (Dao 2023, FlashAttention-2, algorithm 2:
// p is made again a block at a time, so memory does not grow with T^2). Accumulation is F32: dq over keys in
// ascending order; dk and dv head by head, queries ascending. A sequence's gradients depend on that sequence
// alone. out and log_sum_exp are taken as given. Bounds, with B and log_sum_exp of the row (of dk and dv: the
// largest of the sequence's rows of the group), W_j = |dout|·|v_j| + |dout|·|out|, n the keys or the rows
// that are added up and gamma as in linear.h:
//   P = exp(R B + 3 u (B + |log_sum_exp|) + 8 u) - 1, relative, of p, with R = gamma_(D+16)
//   C = (1 + R B / c)^2, or 1 without a soft-cap
//   F = (1 + P)(1 + gamma_(D+4))(C + 8 u) - 1, of ds, beside p W
//   dq: ((1 + F)(1 + gamma_(n+4)) - 1) * |scale| sum_j p_j W_j |k_j|;  dk: the same with |q|
//   dv: ((1 + P)(1 + gamma_(n+1)) - 1) * sum p |dout|
// each + 2^-125 * (1 + the same sum without p): a p that underflows is lost.
//
// That is kF32. In kBF16 (nearest even) all but the scores are products of BF16: v and dout are rounded for
// dp, p and dout for dv, ds, k and q for dq and dk; delta is of dout as given. Scores may be of q and k as
// rounded, as the forward pass in kBF16 may have them: each moves a product by 2^-8 of it. The bounds are
// those above with v, dout, k and q as they are rounded (but in B, which is of q and k as given, and in
// |dout|·|out|), R = (1 + 2^-8)^2 (1 + gamma_(D+16)) - 1, 1 + P of dv and 1 + F times 1 + 2^-8, and the sums
// of |k| and |q| beside the 1 of 2^-125.
struct AttentionVarlenBackward {
  Tensor q, k, v, starts;  // as AttentionVarlen's
  float scale = 1.0f;
  bool causal = false;
  int64_t window = 0;
  float soft_cap = 0.0f;
  Tensor out, log_sum_exp;          // as it gave them
  Tensor dout;                      // F32 [T, H, D], last dimension contiguous
  Tensor dq, dk, dv;                // as q, k, v; overlap nothing
  Compute compute = Compute::kF32;  // or kBF16
  Tensor workspace;                 // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops(int64_t pairs) const;
  double bytes() const;
};

}  // namespace qiao
