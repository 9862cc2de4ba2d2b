#include "backend/cpu/norm_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const NormKernels kNormAvx2 = {NormKernel<avx2::Simd>::rows, NormKernel<avx2::Simd>::factors,
                               NormKernel<avx2::Simd>::dgamma, NormKernel<avx2::Simd>::dh};

}  // namespace qiao::cpu
