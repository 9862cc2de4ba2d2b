#include "backend/cpu/sample_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

using Sampling = SampleKernel<avx2::Simd>;
const SampleKernels kSampleAvx2 = {Sampling::largest, Sampling::find,   Sampling::exp_sum,
                                   Sampling::divide,  Sampling::mask,   Sampling::between,
                                   Sampling::masses,  Sampling::may_win};

}  // namespace qiao::cpu
