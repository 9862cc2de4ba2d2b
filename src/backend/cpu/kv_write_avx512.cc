#include "backend/cpu/kv_write_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {

using KvWriting = KvWriteKernel<avx512::Simd>;
const KvWriteKernels kKvWriteAvx512 = {KvWriting::tokens<float>, KvWriting::tokens<Half>,
                                       KvWriting::tokens<Brain>, KvWriting::q8_tokens, KvWriting::f8_tokens};

}  // namespace qiao::cpu
