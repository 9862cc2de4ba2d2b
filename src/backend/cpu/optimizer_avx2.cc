#include "backend/cpu/optimizer_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const OptimizerKernels kOptimizerAvx2 = {OptimizerKernel<avx2::Simd>::squares,
                                         OptimizerKernel<avx2::Simd>::adamw,
                                         OptimizerKernel<avx2::Simd>::adamw_kept};

}  // namespace qiao::cpu
