#include "backend/cpu/sample_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

using Kernel = SampleKernel<avx2::Simd>;
const SampleKernels kSampleAvx2 = {Kernel::largest, Kernel::find,    Kernel::exp_sum, Kernel::divide,
                                   Kernel::mask,    Kernel::between, Kernel::masses,  Kernel::may_win};

}  // namespace qiao::cpu
