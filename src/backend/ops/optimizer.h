#pragma once

#include "backend/ops/common.h"
#include "backend/ops/dynamic_codes.h"

namespace qiao {

// sum[0] += sum of squares of x, in float64: a square is exact; each run of 4096 elements adds up in sixteen
// lanes or more (of every n-th element), which are folded in a fixed order, as are the runs.
// Relative error of the sum (with |sum before|) at most (runs + 280) * 2^-53. Infinite or NaN where an
// element is.
struct SumOfSquares {
  Tensor x;    // F32 [n], dense
  Tensor sum;  // F64 [1]; not part of x

  void check() const;
  double flops() const;
  double bytes() const;
};

// sum[i] += x[i], rounded once to F32: what adds the gradients of several ranks up.
struct Accumulate {
  Tensor x, sum;  // F32 [n], dense, distinct

  void check() const;
  double flops() const;
  double bytes() const;
};

// AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW. With constants computed in float64 and rounded
// once to F32, and every operation below rounded to F32 by itself (the reference: in float64, rounded at the
// end), in this order:
//   g = gradient_scale * gradient
//   m = beta1 * m + (1 - beta1) * g
//   v = beta2 * v + (1 - beta2) * (g * g)
//   p = (1 - learning_rate * weight_decay) * p
//       - (learning_rate / (1 - beta1^step)) * (m / (sqrt(v) * (1 / sqrt(1 - beta2^step)) + epsilon))
// so that it does not depend on the machine. Bounds against the formulas in exact arithmetic, gamma as in
// linear.h:
//   m: gamma_5 * M, M = |beta1 m| + |(1 - beta1) g|;  v: gamma_8 * v', v' the new one;  each + 2^-124
//   p: gamma_3 * |(1 - learning_rate * weight_decay) p| + A M / d ((1 + gamma_9) / (1 - gamma_9 - r) - 1)
//      + 2^-124 (1 + A / d), with A = learning_rate / (1 - beta1^step), d the divisor and
//      r = 2^-62 / (sqrt(1 - beta2^step) d) for a square that underflows
//
// Moments are kept in F32, BF16 or U8; p is computed with m and v as they are before they are rounded to
// that.
//   BF16: to nearest even (nothing is drawn: the same bytes each time); beside the bound, 2^-8 of the number.
//     A change of v by less than 2^-9 of itself is lost, so for beta2 > 1 - 2^-9 it never fades.
//   U8: codes of m / scale (signed_codes()) and of v / scale (unsigned_codes(), but never code 0 for a v
//     above 0, whose parameter would leap), with each 256 numbers under one scale, their largest magnitude.
//     A code stands for F32(value * scale). A scale of 0: all are 0, and their codes those of 0. Beside the
//     bound, scale * half the width between neighbouring values (all of it below v's first value), and for
//     the scale the largest of its numbers' bounds.
struct AdamW {
  Tensor parameters, gradients;        // F32 [n], dense, distinct, as all tensors here
  Tensor first_moment, second_moment;  // F32, BF16 or U8 [n], one dtype
  Tensor first_scales, second_scales;  // F32 [ceil(n / 256)] beside U8, else absent
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
  double gradient_scale = 1.0;  // of clipping
  int64_t step = 1;             // from 1

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
