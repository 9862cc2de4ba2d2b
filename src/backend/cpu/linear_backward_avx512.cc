#include "backend/cpu/linear_backward_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const LinearBackwardKernels kLinearBackwardAvx512 = linear_backward_kernels<avx512::Simd>();

}  // namespace qiao::cpu
