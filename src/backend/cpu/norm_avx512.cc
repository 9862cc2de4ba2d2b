#include "backend/cpu/norm_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const NormKernels kNormAvx512 = {NormKernel<avx512::Simd>::rows, NormKernel<avx512::Simd>::factors,
                                 NormKernel<avx512::Simd>::dgamma, NormKernel<avx512::Simd>::dh};

}  // namespace qiao::cpu
