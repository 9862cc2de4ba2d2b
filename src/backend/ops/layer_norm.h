#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Layer normalisation (Ba, Kiros and Hinton 2016), with the residual stream's addition fused in:
//   h = x + residual (or x);  d = h - mean(h);  y = d / sqrt(mean(d^2) + epsilon) * gamma + beta
// over the last dimension of each row. Two passes: the mean first, then the squares of the differences from
// it. Both sums are taken in partial sums, each of 1/16 of the row at most and ascending, which are folded
// pairwise: an order of the row's own. With u = 2^-24, r = sqrt(mean(d^2) + epsilon), m = C/16 + 12:
//   E_i = gamma_4 (|x_i| + |residual_i|) + gamma_m mean(|x| + |residual|)         what d_i errs
//   R   = sqrt(mean(E^2)) + gamma_m (r + sqrt(mean(E^2)))                         what r errs
//   N_i = (E_i + |d_i| / r * R) / (r - R)                                         what d_i / r errs
// The first because the mean's error is the sum's, the second because r is 1-Lipschitz in d / sqrt(C), the
// third from |a'/b' - a/b| <= (|a' - a| + |a/b| |b' - b|) / b'. Where rounding drowns a row (R >= r), the
// bound is N_i = |d_i| / r + (1 + gamma_m) sqrt(C), since no d' exceeds sqrt(C) times its own r'.
// Bound: |gamma| (N_i + gamma_4 (|d_i| / r + N_i)) + u (|y| + |gamma| N_i + |beta|) + 2^-126 (1 + |gamma|).
// y may alias x or residual exactly; nothing else overlaps.
struct LayerNorm {
  Tensor x;         // F32 [T, C], rows contiguous
  Tensor residual;  // as x, or absent
  Tensor gamma;     // F32 [C]
  Tensor beta;      // F32 [C], or absent (zeros)
  float epsilon = 1e-12f;
  Tensor y;  // as x

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
