// What AVX-512 BF16 adds to the matmul kernels: vdpbf16ps, two multiply-adds a lane. It adds the odd
// element's product first, so pairs of x and W would be summed in descending k: pairs are kept as (k, k + 1)
// and both products of a lane belong to the same pair, an order of the row's own.
#include "backend/cpu/e4m3_inl.h"
#include "backend/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

namespace qiao::cpu {
namespace {

#include "backend/cpu/linear_unpack_inl.h"

#include "backend/cpu/linear_micro_inl.h"

#include "backend/cpu/linear_avx512_inl.h"

struct Bf16 : Avx512 {
  static __m512bh load_step(const HalfPair* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
  static __m512bh splat_step(const HalfPair* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(word));
  }
  static F step(__m512bh w, __m512bh x, F sum) { return _mm512_dpbf16_ps(sum, w, x); }
};

void pack_bf16(const float* x, int64_t columns, uint16_t* pairs) {
  for (int64_t k = 0; k < columns; ++k) pairs[k] = static_cast<uint16_t>(rounded_to_bf16(x[k]) >> 16);
  if (columns % 2 != 0) pairs[columns] = 0;
}

}  // namespace

const LinearKernels& linear_kernels_avx512_bf16() {
  static const LinearKernels table = [] {
    LinearKernels t = linear_kernels_avx512_vnni();
    t.isa = Isa::kAvx512Bf16;
    t.pack_bf16 = pack_bf16;
    t.dot_bf16 = dot_float<Bf16, HalfPair, HalfPair>;
    return t;
  }();
  return table;
}

}  // namespace qiao::cpu
#endif
