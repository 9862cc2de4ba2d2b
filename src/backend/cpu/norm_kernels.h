#pragma once

#include "backend/ops/norm.h"

namespace qiao::cpu {

struct NormKernels {
  void (*rows)(const AddRmsNorm& op, int64_t begin, int64_t end);
};
extern const NormKernels kNormGeneric, kNormAvx2, kNormAvx512;

}  // namespace qiao::cpu
