#include "backend/cpu/gated_activation_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

const GatedActivationKernels kGatedActivationAvx2 = {GatedActivationKernel<avx2::Simd>::rows,
                                                     GatedActivationKernel<avx2::Simd>::backward,
                                                     GatedActivationKernel<avx2::Simd>::activate};

}  // namespace qiao::cpu
