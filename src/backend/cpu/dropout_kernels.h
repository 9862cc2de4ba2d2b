#pragma once

#include <cstdint>

#include "backend/ops/dropout.h"

namespace qiao::cpu {

struct DropoutKernels {
  void (*rows)(const Dropout& op, int64_t begin, int64_t end);
};
extern const DropoutKernels kDropoutGeneric, kDropoutAvx2, kDropoutAvx512;

}  // namespace qiao::cpu
