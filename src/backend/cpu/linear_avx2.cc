// Matmul kernels for AVX2: 16 rows of W are two 256-bit vectors; int8 dot products as vpmaddubsw, vpmaddwd,
// vpaddd. 16 registers hold a tile of 2 rows of x by one group.
#include "backend/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

namespace qiao::cpu {
namespace {

#include "backend/cpu/linear_unpack_inl.h"

#include "backend/cpu/linear_micro_inl.h"

struct Avx2 {
  static constexpr int kRows = 2, kGroups = 1, kFloatRows = 4, kPackedRows = 4;
  struct F {
    __m256 low, high;
  };
  struct I {
    __m256i low, high;
  };
  using W = I;
  using X = __m256i;

  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static F splat(const float* p) {
    const __m256 v = _mm256_broadcast_ss(p);
    return {v, v};
  }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static F to_float(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
  static I zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I splat(const int32_t* p) {
    const __m256i v = _mm256_set1_epi32(*p);
    return {v, v};
  }
  static I sub(I a, I b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
  static I shift_left(I a, int count) {
    const __m128i by = _mm_cvtsi32_si128(count);
    return {_mm256_sll_epi32(a.low, by), _mm256_sll_epi32(a.high, by)};
  }
  static W load_weights(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static X splat_activations(const int8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  static constexpr bool kShorts = true;
  static I multiply_pairs(W w, X x) {
    return {_mm256_maddubs_epi16(w.low, x), _mm256_maddubs_epi16(w.high, x)};
  }
  static I add16(I a, I b) { return {_mm256_add_epi16(a.low, b.low), _mm256_add_epi16(a.high, b.high)}; }
  static I add_pairs(I sum, I pairs) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(pairs.low, ones)),
            _mm256_add_epi32(sum.high, _mm256_madd_epi16(pairs.high, ones))};
  }
  // Of 8 bits: as 2 * (w / 2) + w % 2, whose pairs fit 16 bits.
  static __m256i dot8(__m256i sum, __m256i w, __m256i x) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i half = _mm256_and_si256(_mm256_srli_epi16(w, 1), _mm256_set1_epi8(127));
    const __m256i rest = _mm256_and_si256(w, _mm256_set1_epi8(1));
    const __m256i twice = _mm256_madd_epi16(_mm256_maddubs_epi16(half, x), _mm256_set1_epi16(2));
    return _mm256_add_epi32(_mm256_add_epi32(sum, twice),
                            _mm256_madd_epi16(_mm256_maddubs_epi16(rest, x), ones));
  }
  template <Width>
  static I dot(I sum, W w, X x) {
    return {dot8(sum.low, w.low, x), dot8(sum.high, w.high, x)};
  }
  static F load_step(const float* p) { return load(p); }
  static F splat_step(const float* p) { return splat(p); }
  static F step(F w, F x, F sum) { return fma(w, x, sum); }
  static F load_step(const Half* p) {
    const auto* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  struct Two {
    F low, high;
  };
  static Two load_step(const HalfPair* p) {
    const auto* pairs = reinterpret_cast<const __m256i*>(p);
    const __m256i a = _mm256_loadu_si256(pairs), b = _mm256_loadu_si256(pairs + 1);
    const __m256i mask = _mm256_set1_epi32(-65536);
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(a, mask)), _mm256_castsi256_ps(_mm256_and_si256(b, mask))}};
  }
  static Two splat_step(const FloatPair* p) { return {splat(&p->low), splat(&p->high)}; }
  static F step(Two w, Two x, F sum) { return fma(w.high, x.high, fma(w.low, x.low, sum)); }
};

}  // namespace

const LinearKernels& linear_kernels_avx2() {
  static const LinearKernels table = make_table<Avx2>(Isa::kAvx2);
  return table;
}

}  // namespace qiao::cpu
#endif
