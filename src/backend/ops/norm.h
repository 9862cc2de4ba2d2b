#pragma once

#include "backend/ops/common.h"

namespace qiao {

// RMSNorm (Zhang and Sennrich 2019), with the residual stream's addition fused in:
//   h = x + residual (or x);  residual_out = h;  y = h / sqrt(mean(h^2) + epsilon) * (gamma + gamma_offset)
// The mean is over the last dimension; every leading index is a row of its own (so per-head norms are x [T,
// H, D]). The sum of squares is taken in 16 interleaved partial sums (lane i holds k = i mod 16, ascending),
// folded pairwise (8, 4, 2, 1): an order of the row's own. Bound: |error| <= (gamma_(D/16 + 12)) * |y|, u =
// 2^-24, plus u*(|x|+|residual|) carried through by the factor. y may alias x, residual_out may alias
// residual or x; y and residual_out are distinct.
struct AddRmsNorm {
  Tensor x;                   // F32 [T, C] or [T, H, D], last dimension contiguous
  Tensor residual;            // as x, or absent
  Tensor gamma;               // F32 [C] or [D], or absent (all ones)
  float gamma_offset = 0.0f;  // 1 for Gemma's Hugging Face weights
  float epsilon = 1e-6f;
  Tensor y;             // as x
  Tensor residual_out;  // as x, or absent

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
