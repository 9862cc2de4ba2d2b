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

}  // namespace qiao
