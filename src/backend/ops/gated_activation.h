#pragma once

#include "backend/ops/common.h"

namespace qiao {

// y[t, f] = activation(x[t, f]) * x[t, F + f]: SwiGLU (kSilu), GeGLU (kGelu, kGeluTanh); Shazeer 2020.
// Bound: 16 u * (|gate| * |up| + |y|), u = 2^-24 (the exponential correct to 4 u).
struct GatedActivation {
  Tensor x;                                   // F32 [T, 2F], rows contiguous: gate, then up
  Activation activation = Activation::kSilu;  // kSilu, kGelu or kGeluTanh
  Tensor y;                                   // F32 [T, F], rows contiguous; does not overlap x

  void check() const;
  double flops() const;
  double bytes() const;
};

// Gradient of GatedActivation: with a = activation, gate = x[t, f], up = x[t, F + f]:
//   dx[t, f] = dy[t, f] * up * a'(gate);  dx[t, F + f] = dy[t, f] * a(gate)
// Bound: 24 u * |dy| * |up| * (|a'(gate)| + 1), and 16 u * |dy| * (|gate| + |a(gate)|); each + 2^-126 *
// (1 + |dy|) * (1 + |gate| + |up|).
struct GatedActivationBackward {
  Tensor x;                                   // as GatedActivation's
  Activation activation = Activation::kSilu;  // kSilu, kGelu or kGeluTanh
  Tensor dy;                                  // F32 [T, F], rows contiguous
  Tensor dx;  // F32 [T, 2F], rows contiguous; may alias x exactly, overlaps dy never

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
