#include "backend/cpu/sample_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

using Sampling = SampleKernel<avx512::Simd>;
const SampleKernels kSampleAvx512 = {Sampling::largest, Sampling::find,   Sampling::exp_sum,
                                     Sampling::divide,  Sampling::mask,   Sampling::between,
                                     Sampling::masses,  Sampling::may_win};

}  // namespace qiao::cpu
