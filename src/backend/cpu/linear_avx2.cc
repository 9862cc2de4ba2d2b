// Matmul kernels for AVX2: 16 rows of W are two 256-bit vectors. Plain weights go through linear_micro_inl.h,
// a tile of 6 rows of x by one group in 12 of 16 registers; quants through linear_avx2_inl.h.
#include "backend/cpu/e4m3_inl.h"
#include "backend/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

namespace qiao::cpu {
namespace {

#include "backend/cpu/linear_unpack_inl.h"

#include "backend/cpu/linear_micro_inl.h"

struct Avx2 {
  static constexpr int kGroups = 1, kFloatRows = 6;
  struct F {
    __m256 low, high;
  };
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
  static F load_step(const float* p) { return load(p); }
  static F splat_step(const float* p) { return splat(p); }
  static F step(F w, F x, F sum) { return fma(w, x, sum); }
  static F load_step(const Half* p) {
    const auto* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  // As Avx512 has them, `most` for two places at once.
  static constexpr int kF8Blocks = 2;
  using Codes = __m256i;
  static F f8_numbers(__m256i codes) {  // in the high bytes of words
    const __m256i bits = _mm256_set1_epi16(static_cast<int16_t>(0xbf80));
    const __m256i halves = _mm256_and_si256(_mm256_srai_epi16(codes, 1), bits);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  }
  static void f8_numbers(const uint8_t* p, F (&w)[4], Codes& most) {
    const __m256i by_k =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const auto* rows = reinterpret_cast<const __m128i*>(p);
    const auto both = [&](int i) {
      return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(rows + i)),
                                     _mm_loadu_si128(rows + i + 2), 1);
    };
    __m256i a = both(0), b = both(1);  // rows 0 to 3 and 8 to 11; 4 to 7 and 12 to 15
    most = _mm256_max_epu8(most, _mm256_max_epu8(_mm256_add_epi8(a, a), _mm256_add_epi8(b, b)));
    a = _mm256_shuffle_epi8(a, by_k);
    b = _mm256_shuffle_epi8(b, by_k);
    const __m256i first = _mm256_unpacklo_epi32(a, b);  // of k: 0 and 1
    w[0] = f8_numbers(_mm256_unpacklo_epi8(first, first));
    w[1] = f8_numbers(_mm256_unpackhi_epi8(first, first));
    const __m256i last = _mm256_unpackhi_epi32(a, b);
    w[2] = f8_numbers(_mm256_unpacklo_epi8(last, last));
    w[3] = f8_numbers(_mm256_unpackhi_epi8(last, last));
  }
  static bool f8_nan(Codes most) {
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(most, _mm256_set1_epi8(static_cast<char>(0xfe)))) != 0;
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

#include "backend/cpu/linear_avx2_inl.h"

#include "backend/cpu/linear_scales_avx2_inl.h"

#include "backend/cpu/linear_f8_inl.h"

}  // namespace

const LinearKernels& linear_kernels_avx2() {
  static const LinearKernels table = [] {
    LinearKernels kernels = make_table<Avx2>(Isa::kAvx2);
    kernels.quantize = quantize_avx2;
    kernels.scales[static_cast<size_t>(DType::kQ4_K)] = scales_k4_avx2<128>;
    kernels.scales[static_cast<size_t>(DType::kQ5_K)] = scales_k4_avx2<160>;
    kernels.scales[static_cast<size_t>(DType::kQ6_K)] = scales_q6_k_avx2;
    fill_f8<Avx2>(kernels);
    return kernels;
  }();
  return table;
}

}  // namespace qiao::cpu
#endif
