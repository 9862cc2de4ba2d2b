#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Bidirectional attention over sequences packed one after the other, without a cache (encoders). Sequence s
// owns rows [starts[s], starts[s + 1]) of q, k, v and out; each of its queries sees all of its keys.
//   score_j = scale * q·k_j + bias[h, j - i + M - 1] of query i;  out = sum_j exp(score_j - max) v_j / sum_j
//   exp(score_j - max)
// Query head h reads key/value head h / (H / G). Accumulation is F32, in an order that depends on the
// sequence's length and the head alone (never on what is packed beside it): keys in ascending blocks of a
// fixed size. Bound, with n keys: (exp(2 gamma_(D+16) * B) - 1 + gamma_(2n+16)) * sum_j p_j |v_j| + 2^-126,
// where B = max_j (|scale| (|q|·|k_j|) + |bias|) and p_j are the probabilities; derived as for
// AttentionPaged.
struct AttentionVarlen {
  Tensor q;       // F32 [T, H, D], last dimension contiguous
  Tensor k, v;    // F32 [T, G, D], last dimension contiguous; H a multiple of G
  Tensor starts;  // I32 [S + 1], ascending from 0 to T: the producer's duty
  float scale = 1.0f;
  // F32 [H, 2M - 1], by distance (T5's and MPNet's relative positions), or absent: none. No sequence has more
  // than M tokens: the producer's duty.
  Tensor bias;
  Tensor out;        // F32 [T, H, D], last dimension contiguous; overlaps nothing
  Tensor workspace;  // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  // The caller tells the (query, key) pairs, for benches: starts lie on the device.
  double flops(int64_t pairs) const;
  double bytes() const;
};

}  // namespace qiao
