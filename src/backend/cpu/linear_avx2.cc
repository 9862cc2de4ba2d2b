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

}  // namespace

const LinearKernels& linear_kernels_avx2() {
  static const LinearKernels table = [] {
    LinearKernels kernels = make_table<Avx2>(Isa::kAvx2);
    kernels.quantize = quantize_avx2;
    kernels.scales[static_cast<size_t>(DType::kQ4_K)] = scales_k4_avx2<128>;
    kernels.scales[static_cast<size_t>(DType::kQ5_K)] = scales_k4_avx2<160>;
    kernels.scales[static_cast<size_t>(DType::kQ6_K)] = scales_q6_k_avx2;
    return kernels;
  }();
  return table;
}

}  // namespace qiao::cpu
#endif
