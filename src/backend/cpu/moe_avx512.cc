#include "backend/cpu/moe_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const MoeKernels kMoeAvx512 = {MoeKernel<avx512::Simd>::combine};

}  // namespace qiao::cpu
