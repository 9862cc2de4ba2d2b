#pragma once

#include <cstdint>

namespace qiao::cpu {

// AdamW's constants, each rounded once (ops/optimizer.h).
struct AdamWConstants {
  float gradient_scale;
  float beta1, beta1_rest, beta2, beta2_rest;  // rest: 1 - beta
  float decay;                                 // 1 - learning_rate * weight_decay
  float step_size;                             // learning_rate / (1 - beta1^step)
  float root;                                  // 1 / sqrt(1 - beta2^step)
  float epsilon;
};

struct OptimizerKernels {
  double (*squares)(const float* x, int64_t count);  // their sum, in sixteen lanes
  void (*adamw)(const AdamWConstants& constants, const float* gradients, float* parameters,
                float* first_moment, float* second_moment, int64_t count);
};
extern const OptimizerKernels kOptimizerGeneric, kOptimizerAvx2, kOptimizerAvx512;

}  // namespace qiao::cpu
