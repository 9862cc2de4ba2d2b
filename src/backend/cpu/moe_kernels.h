#pragma once

#include "backend/ops/moe.h"

namespace qiao::cpu {

struct MoeKernels {
  void (*combine)(const MoeCombine& op, int64_t begin, int64_t end);
  void (*permute_backward)(const MoePermuteBackward& op, int64_t begin, int64_t end);
  void (*combine_backward)(const MoeCombineBackward& op, int64_t begin, int64_t end);
};
extern const MoeKernels kMoeGeneric, kMoeAvx2, kMoeAvx512;

}  // namespace qiao::cpu
