#include "backend/cpu/layer_norm_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const LayerNormKernels kLayerNormAvx512 = {LayerNormKernel<avx512::Simd>::rows};

}  // namespace qiao::cpu
