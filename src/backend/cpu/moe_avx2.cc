#include "backend/cpu/moe_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const MoeKernels kMoeAvx2 = moe_kernels<avx2::Simd>();

}  // namespace qiao::cpu
