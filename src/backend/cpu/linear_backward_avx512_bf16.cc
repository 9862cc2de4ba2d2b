// What AVX-512 BF16 adds to the way back of linear: the tiles of AVX-512 with vdpbf16ps, as the forward pass
// has it, in the place of a multiply-add: two numbers of the sum a step. Elsewhere its packing and tiles are
// tested with a product of pairs in plain C++.
#include "backend/cpu/linear_backward_inl.h"
#include "backend/cpu/simd_avx512.h"

namespace qiao::cpu {
namespace {

struct PairsAvx512 : avx512::Simd {
  static F fma(F x, F w, F sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
};

}  // namespace

const LinearBackwardKernels kLinearBackwardAvx512Bf16 = pair_kernels<avx512::Simd, PairsAvx512>();

}  // namespace qiao::cpu
