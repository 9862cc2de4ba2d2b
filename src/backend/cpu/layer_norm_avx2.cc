#include "backend/cpu/layer_norm_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const LayerNormKernels kLayerNormAvx2 = {LayerNormKernel<avx2::Simd>::rows};

}  // namespace qiao::cpu
