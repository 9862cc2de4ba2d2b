#include "backend/cpu/rope_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const RopeKernels kRopeAvx512 = {RopeKernel<avx512::Simd>::tokens};

}  // namespace qiao::cpu
