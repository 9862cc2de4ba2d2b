#include "backend/cpu/dropout_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const DropoutKernels kDropoutAvx2 = {DropoutKernel<avx2::Simd>::rows};

}  // namespace qiao::cpu
