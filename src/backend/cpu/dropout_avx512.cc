#include "backend/cpu/dropout_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const DropoutKernels kDropoutAvx512 = {DropoutKernel<avx512::Simd>::rows};

}  // namespace qiao::cpu
