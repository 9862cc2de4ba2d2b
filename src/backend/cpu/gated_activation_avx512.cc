#include "backend/cpu/gated_activation_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

const GatedActivationKernels kGatedActivationAvx512 = {GatedActivationKernel<avx512::Simd>::rows,
                                                       GatedActivationKernel<avx512::Simd>::backward,
                                                       GatedActivationKernel<avx512::Simd>::activate};

}  // namespace qiao::cpu
