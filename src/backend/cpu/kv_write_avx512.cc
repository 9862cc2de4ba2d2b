#include "backend/cpu/kv_write_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

using Kernel = KvWriteKernel<avx512::Simd>;
const KvWriteKernels kKvWriteAvx512 = {Kernel::tokens<float>, Kernel::tokens<Half>, Kernel::tokens<Brain>,
                                       Kernel::q8_tokens};

}  // namespace qiao::cpu
