#include "backend/cpu/linear_backward_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const LinearBackwardKernels kLinearBackwardAvx2 = linear_backward_kernels<avx2::Simd>();

}  // namespace qiao::cpu
