#pragma once

#include "backend/ops/common.h"

namespace qiao {

// sum[0] += sum of squares of x, in float64 over fixed runs of 4096 elements, folded in ascending order.
// Infinite or NaN where an element is.
struct SumOfSquares {
  Tensor x;    // F32 [n], dense
  Tensor sum;  // F64 [1]

  void check() const;
  double flops() const;
  double bytes() const;
};

// AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW: for each element, with g = gradient_scale *
// gradient,
//   p -= learning_rate * weight_decay * p
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   p -= learning_rate * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + epsilon)
struct AdamW {
  Tensor parameters, gradients, first_moment, second_moment;  // F32 [n], dense, distinct
  float learning_rate = 1e-3f, beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, weight_decay = 0.1f;
  float gradient_scale = 1.0f;  // of clipping
  int64_t step = 1;             // from 1

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
