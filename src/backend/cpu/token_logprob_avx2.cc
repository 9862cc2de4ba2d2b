#include "backend/cpu/simd_avx2.h"
#include "backend/cpu/token_logprob_inl.h"

namespace qiao::cpu {

const TokenLogprobKernels kTokenLogprobAvx2 = {TokenLogprobKernel<avx2::Simd>::gradients};

}  // namespace qiao::cpu
