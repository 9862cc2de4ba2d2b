// Sixteen lanes of F32 in two AVX registers: simd_avx512.h says what each function means. Included by
// *_avx2.cc only.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/cpu/element.h"
#include "backend/cpu/philox_words.h"

namespace qiao::cpu::avx2 {

struct Simd {
  struct F {
    __m256 low, high;
  };
  using M = F;  // all ones or all zeros a lane
  // Accumulators of a tile: 12 of 16 registers.
  static constexpr int kTileVectors = 1, kTileRows = kSmallTiles ? 2 : 6;

  static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static void fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F load(const Half* p) {
    const __m128i* at = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
  }
  static F load(const Brain* p) {
    const __m128i* at = reinterpret_cast<const __m128i*>(p);
    return {widen(_mm_loadu_si128(at)), widen(_mm_loadu_si128(at + 1))};
  }
  static F load(const int8_t* p) {
    const auto widen8 = [](const int8_t* at) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    };
    return {widen8(p), widen8(p + 8)};
  }
  static constexpr float kE4m3Unit = 256;
  static F load(const E4m3* p) {
    const __m128i numbers = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(numbers), 7);  // the sign twice
    const __m256i halves = _mm256_and_si256(wide, _mm256_set1_epi16(-0x4001));
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  }
  static F set(const Half* p) {
    const __m256 x = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(p->bits)));
    return {x, x};
  }
  static M first(int64_t n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i count = _mm256_set1_epi32(static_cast<int>(n < 16 ? n : 16));
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lanes)),
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))))};
  }
  static F load_part(const float* p, int64_t n) {
    const M m = first(n);
    return {_mm256_maskload_ps(p, _mm256_castps_si256(m.low)),
            _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.high))};
  }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
  }
  static void store(Half* p, F x) {
    __m128i* at = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(at, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(at + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(Brain* p, F x) {
    const __m256i packed = _mm256_packus_epi32(narrow(x.low), narrow(x.high));  // quarters 0 2 1 3
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
  }
  static void store(int8_t* p, F x) {
    const auto narrow16 = [](__m256 half) {
      const __m256i whole = _mm256_cvtps_epi32(half);
      return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    };
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(narrow16(x.low), narrow16(x.high)));
  }
  static void store(E4m3* p, F x) {
    const __m256i packed = _mm256_packus_epi32(narrow8(x.low), narrow8(x.high));  // quarters 0 2 1 3
    const __m256i words = _mm256_permute4x64_epi64(packed, 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
  static void store_part(float* p, F x, int64_t n) {
    const M m = first(n);
    _mm256_maskstore_ps(p, _mm256_castps_si256(m.low), x.low);
    _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.high), x.high);
  }

  static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static F sqrt(F a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static F fnma(F a, F b, F c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
  }
  static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static F round(F a) { return {round(a.low), round(a.high)}; }
  static F brain(F a) { return {brain(a.low), brain(a.high)}; }
  static F abs(F a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
  }
  static F with_sign(F magnitude, F sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(magnitude.low, _mm256_and_ps(sign.low, bit)),
            _mm256_or_ps(magnitude.high, _mm256_and_ps(sign.high, bit))};
  }
  static void transpose(F (&x)[16]) {
    __m256 quarter[4][8];  // of eight rows and columns
    for (int i = 0; i < 8; ++i) {
      quarter[0][i] = x[i].low, quarter[1][i] = x[i].high;
      quarter[2][i] = x[8 + i].low, quarter[3][i] = x[8 + i].high;
    }
    for (auto& rows : quarter) transpose8(rows);
    for (int c = 0; c < 8; ++c) {
      x[c] = {quarter[0][c], quarter[2][c]};
      x[8 + c] = {quarter[1][c], quarter[3][c]};
    }
  }
  static F swap_pairs(F a) { return {_mm256_permute_ps(a.low, 0xb1), _mm256_permute_ps(a.high, 0xb1)}; }
  static F scale(F a, F n) { return {scale(a.low, n.low), scale(a.high, n.high)}; }
  static M less(F a, F b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)};
  }
  static M at_most(F a, F b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_LE_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_LE_OQ)};
  }
  static M both(M a, M b) { return {_mm256_and_ps(a.low, b.low), _mm256_and_ps(a.high, b.high)}; }
  static uint32_t bits(M m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(m.low)) |
           static_cast<uint32_t>(_mm256_movemask_ps(m.high)) << 8;
  }
  static M mask(uint32_t bits) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const auto spread = [&](uint32_t byte) {
      const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(byte)), lanes);
      return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lanes));
    };
    return {spread(bits & 0xffu), spread(bits >> 8)};
  }
  static F select(M m, F yes, F no) {
    return {_mm256_blendv_ps(no.low, yes.low, m.low), _mm256_blendv_ps(no.high, yes.high, m.high)};
  }

  static float sum(F a) {
    const __m256 half = _mm256_add_ps(a.low, a.high);
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  static float largest(F a) {
    const __m256 half = _mm256_max_ps(a.low, a.high);
    const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
  }
  static float lane0(F a) { return _mm256_cvtss_f32(a.low); }

  struct Sum {
    __m256d lanes4[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    void add(F x) {
      lanes4[0] = _mm256_add_pd(lanes4[0], _mm256_cvtps_pd(_mm256_castps256_ps128(x.low)));
      lanes4[1] = _mm256_add_pd(lanes4[1], _mm256_cvtps_pd(_mm256_extractf128_ps(x.low, 1)));
      lanes4[2] = _mm256_add_pd(lanes4[2], _mm256_cvtps_pd(_mm256_castps256_ps128(x.high)));
      lanes4[3] = _mm256_add_pd(lanes4[3], _mm256_cvtps_pd(_mm256_extractf128_ps(x.high, 1)));
    }
    void add_squares(F x) {
      const __m128 parts[4] = {_mm256_castps256_ps128(x.low), _mm256_extractf128_ps(x.low, 1),
                               _mm256_castps256_ps128(x.high), _mm256_extractf128_ps(x.high, 1)};
      for (int i = 0; i < 4; ++i) {
        const __m256d a = _mm256_cvtps_pd(parts[i]);
        lanes4[i] = _mm256_fmadd_pd(a, a, lanes4[i]);
      }
    }
    void store(double* lanes) const {
      for (int i = 0; i < 4; ++i) _mm256_storeu_pd(lanes + 4 * i, lanes4[i]);
    }
  };

  static F quarter_turns(F angle, F* quarters) {
    __m128 rest[4], turns[4];
    const __m128 parts[4] = {_mm256_castps256_ps128(angle.low), _mm256_extractf128_ps(angle.low, 1),
                             _mm256_castps256_ps128(angle.high), _mm256_extractf128_ps(angle.high, 1)};
    for (int i = 0; i < 4; ++i) {
      const __m256d a = _mm256_cvtps_pd(parts[i]);
      const __m256d n = _mm256_round_pd(_mm256_mul_pd(a, _mm256_set1_pd(kTwoOverPi)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(kHalfPiHigh), a);
      r = _mm256_fnmadd_pd(n, _mm256_set1_pd(kHalfPiLow), r);
      rest[i] = _mm256_cvtpd_ps(r);
      const __m256d fours = _mm256_floor_pd(_mm256_mul_pd(n, _mm256_set1_pd(0.25)));
      turns[i] = _mm256_cvtpd_ps(_mm256_fnmadd_pd(fours, _mm256_set1_pd(4.0), n));
    }
    *quarters = {_mm256_set_m128(turns[1], turns[0]), _mm256_set_m128(turns[3], turns[2])};
    return {_mm256_set_m128(rest[1], rest[0]), _mm256_set_m128(rest[3], rest[2])};
  }

  static F complement_to_float(const uint32_t* words) {
    float x[16];
    for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(~words[i]);
    return load(x);
  }
  static void philox(uint32_t first, uint32_t position, uint32_t choice, uint64_t seed, uint32_t* words) {
    PhiloxWords<Simd>::fill(first, position, choice, seed, words);
  }

 private:
  static void transpose8(__m256 (&r)[8]) {
    __m256 pair[8], four[8];
    for (int i = 0; i < 8; i += 2) {
      pair[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      pair[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
      four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
      four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
      four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
  }
  static __m256 widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static __m256i narrow8(__m256 a) {  // to E4M3, in the low byte of each lane
    const __m256 most = _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a), _mm256_set1_ps(448.0f));
    const __m256i bits = _mm256_castps_si256(most);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
    const __m256i normal = _mm256_srli_epi32(_mm256_sub_epi32(up, _mm256_set1_epi32(0x3c000000)), 20);
    const __m256i shifted = _mm256_castps_si256(_mm256_add_ps(most, _mm256_set1_ps(0x1p14f)));
    const __m256i small = _mm256_sub_epi32(shifted, _mm256_set1_epi32(0x46800000));
    const __m256i below = _mm256_castps_si256(_mm256_cmp_ps(most, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ));
    const __m256i sign =
        _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(a), 24), _mm256_set1_epi32(0x80));
    return _mm256_or_si256(_mm256_blendv_epi8(normal, small, below), sign);
  }
  static __m256i narrow(__m256 a) {  // to BF16, in the low half of each lane
    const __m256i bits = _mm256_castps_si256(a), top = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
  }
  static __m256 brain(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x400000)));
    const __m256 right =
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_and_ps(right, _mm256_castsi256_ps(_mm256_set1_epi32(-65536)));
  }
  static __m256 round(__m256 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // In two steps, so that results below the least normal number are right.
  static __m256 scale(__m256 a, __m256 n) {
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const auto power = [](__m256i e) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
    };
    return _mm256_mul_ps(_mm256_mul_ps(a, power(half)), power(_mm256_sub_epi32(whole, half)));
  }
};

}  // namespace qiao::cpu::avx2
