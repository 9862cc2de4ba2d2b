#include "backend/cpu/optimizer_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const OptimizerKernels kOptimizerAvx512 = {OptimizerKernel<avx512::Simd>::squares,
                                           OptimizerKernel<avx512::Simd>::adamw,
                                           OptimizerKernel<avx512::Simd>::adamw_kept};

}  // namespace qiao::cpu
