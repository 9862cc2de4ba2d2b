#pragma once

#include "backend/ops/norm.h"

namespace qiao::cpu {

struct NormKernels {
  void (*rows)(const AddRmsNorm& op, int64_t begin, int64_t end);
  // The way back, of rows [begin, end): factors[r - begin] = 1 / sqrt(mean(h^2) + epsilon).
  void (*factors)(const AddRmsNormBackward& op, int64_t begin, int64_t end, float* factors);
  // dgamma of columns [first, last), rows in order; `factors` of row `begin` on.
  void (*dgamma)(const AddRmsNormBackward& op, int64_t begin, int64_t end, int64_t first, int64_t last,
                 const float* factors);
  void (*dh)(const AddRmsNormBackward& op, int64_t begin, int64_t end, const float* factors);
};
extern const NormKernels kNormGeneric, kNormAvx2, kNormAvx512;

}  // namespace qiao::cpu
