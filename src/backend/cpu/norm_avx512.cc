#include "backend/cpu/norm_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const NormKernels kNormAvx512 = {NormKernel<avx512::Simd>::rows};

}  // namespace qiao::cpu
