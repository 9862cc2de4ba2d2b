#include "backend/cpu/rope_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const RopeKernels kRopeAvx2 = {RopeKernel<avx2::Simd>::tokens};

}  // namespace qiao::cpu
