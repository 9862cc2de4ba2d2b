#include "backend/cpu/simd_avx512.h"
#include "backend/cpu/token_logprob_inl.h"

namespace qiao::cpu {

const TokenLogprobKernels kTokenLogprobAvx512 = {TokenLogprobKernel<avx512::Simd>::gradients};

}  // namespace qiao::cpu
