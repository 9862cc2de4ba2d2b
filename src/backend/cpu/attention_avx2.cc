#include "backend/cpu/attention_inl.h"
#include "backend/cpu/simd_avx2.h"

namespace qiao::cpu {

using Kernel = AttentionKernel<avx2::Simd>;
const AttentionKernels kAttentionAvx2 = {
    Kernel::add<float>, Kernel::add<Half>, Kernel::add<Brain>, Kernel::add<Q8>, Kernel::add<E4m3>,
    Kernel::merge,      Kernel::finish,    Kernel::dots,       Kernel::dot,     Kernel::gradients};

}  // namespace qiao::cpu
