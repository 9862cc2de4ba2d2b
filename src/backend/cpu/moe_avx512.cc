#include "backend/cpu/moe_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const MoeKernels kMoeAvx512 = moe_kernels<avx512::Simd>();

}  // namespace qiao::cpu
