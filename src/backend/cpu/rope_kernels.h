#pragma once

#include "backend/ops/rope.h"

namespace qiao::cpu {

struct RopeKernels {
  void (*tokens)(const Rope& op, int64_t begin, int64_t end);
};
extern const RopeKernels kRopeGeneric, kRopeAvx2, kRopeAvx512;

}  // namespace qiao::cpu
