#pragma once

#include "backend/ops/layer_norm.h"

namespace qiao::cpu {

struct LayerNormKernels {
  void (*rows)(const LayerNorm& op, int64_t begin, int64_t end);
};
extern const LayerNormKernels kLayerNormGeneric, kLayerNormAvx2, kLayerNormAvx512;

}  // namespace qiao::cpu
