#include "backend/cpu/sample_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

using Kernel = SampleKernel<avx512::Simd>;
const SampleKernels kSampleAvx512 = {Kernel::largest, Kernel::find,    Kernel::exp_sum, Kernel::divide,
                                     Kernel::mask,    Kernel::between, Kernel::masses,  Kernel::may_win};

}  // namespace qiao::cpu
