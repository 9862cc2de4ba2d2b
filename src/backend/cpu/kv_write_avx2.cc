#include "backend/cpu/kv_write_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

using KvWriting = KvWriteKernel<avx2::Simd>;
const KvWriteKernels kKvWriteAvx2 = {KvWriting::tokens<float>, KvWriting::tokens<Half>,
                                     KvWriting::tokens<Brain>, KvWriting::q8_tokens, KvWriting::f8_tokens};

}  // namespace qiao::cpu
