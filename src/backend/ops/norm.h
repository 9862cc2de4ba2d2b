#pragma once

#include "backend/ops/common.h"

namespace qiao {

// RMSNorm (Zhang and Sennrich 2019), with the residual stream's addition fused in:
//   h = x + residual (or x);  residual_out = h;  y = h / sqrt(mean(h^2) + epsilon) * (gamma + gamma_offset)
// The mean is over the last dimension; every leading index is a row of its own (so per-head norms are x [T,
// H, D]). The sum of squares is taken in partial sums, each of 1/16 of the row at most and ascending, which
// are folded pairwise: an order of the row's own. Bound: |error| <= (gamma_(D/16 + 12)) * |y|, u =
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

// A norm that is part of another op's call: AddRmsNorm without a residual.
struct RmsNorm {
  bool present = false;
  Tensor gamma;  // as AddRmsNorm's
  float gamma_offset = 0.0f;
  float epsilon = 1e-6f;

  // Of rows of `width`, as the argument `name` of `op`.
  void check(std::string_view op, std::string_view name, int64_t width) const;
  AddRmsNorm apart(const Tensor& x, const Tensor& y) const;
};

// Gradients of AddRmsNorm, from h as residual_out (or x) had it. With g = gamma + gamma_offset,
// r = 1 / sqrt(mean(h^2) + epsilon), over a row of C elements:
//   dh[c] = dresidual_out[c] + r * (g[c] dy[c] - h[c] * r^2 / C * sum_i g[i] dy[i] h[i])
//   dgamma[c] += sum over rows of dy[c] * h[c] * r,  in ascending order of rows
// dh is the gradient of x and of residual alike, and of a row depends on that row alone. Sums of a row are
// taken as AddRmsNorm's; dgamma's begin with what was there. dh may alias dy or dresidual_out
// exactly; nothing else overlaps. Bounds, with m = C / 16 rounded up, for n rows:
//   dh:      gamma_(m + 16) * r |g dy| + gamma_(3m + 40) * r^3 |h| / C * sum_i |g dy h| + 2u |dresidual_out|
//            + 2^-125 * (1 + r)^2 * sqrt(C)
//   dgamma:  gamma_(n + m + 16) * (sum |dy h r| + |dgamma before|) + 2^-126 * (n + sum |dy|)
struct AddRmsNormBackward {
  Tensor dy;             // as AddRmsNorm's y
  Tensor dresidual_out;  // as dy, or absent (nothing else read the sum)
  Tensor h;              // as dy
  Tensor gamma;          // as AddRmsNorm's, or absent
  float gamma_offset = 0.0f;
  float epsilon = 1e-6f;
  Tensor dh;      // as dy
  Tensor dgamma;  // F32, as gamma, or absent

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
