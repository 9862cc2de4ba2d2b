// Sixteen lanes of F32 in one AVX-512 register. Every instruction set offers this same struct, so that a
// kernel is one template and its order of rounding one; included by *_avx512.cc only.
#pragma once

// GCC 12 reports its own undefined pass-through operands (its bug 105593).
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "backend/cpu/element.h"

namespace qiao::cpu::avx512 {

struct Simd {
  using F = __m512;
  using M = __mmask16;
  // Accumulators of a tile: 24 of 32 registers.
  static constexpr int kTileVectors = kSmallTiles ? 2 : 4, kTileRows = kSmallTiles ? 2 : 6;

  static F set(float x) { return _mm512_set1_ps(x); }
  static void fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }  // into L2
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load(const Brain* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // Numbers of E4M3 as F16 has their bits: without kE4m3Unit, by which exponents differ.
  static constexpr float kE4m3Unit = 256;
  static F load(const E4m3* p) {
    const __m128i numbers = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(numbers), 7);  // the sign twice
    return _mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16(-0x4001)));
  }
  static F set(const Half* p) { return _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(p->bits))); }
  static M first(int64_t n) { return n >= 16 ? M(0xffff) : static_cast<M>((1u << n) - 1u); }
  static F load_part(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }  // others 0
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store(Half* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store(Brain* p, F x) {
    const __m512i bits = _mm512_castps_si512(x), top = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __m512i quiet = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
    const __m512i right = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), rounded, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(right));
  }
  static void store(int8_t* p, F x) {  // whole numbers that fit
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  static void store(E4m3* p, F x) {  // to nearest even, 448 at most; a NaN becomes any number
    const F most = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(448.0f));
    const __m512i bits = _mm512_castps_si512(most);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff)));
    const __m512i normal = _mm512_srli_epi32(_mm512_sub_epi32(up, _mm512_set1_epi32(0x3c000000)), 20);
    // Below 2^-6 adding 2^14 brings the last bit to the float's.
    const __m512i shifted = _mm512_castps_si512(_mm512_add_ps(most, _mm512_set1_ps(0x1p14f)));
    const __m512i small = _mm512_sub_epi32(shifted, _mm512_set1_epi32(0x46800000));
    const M below = _mm512_cmp_ps_mask(most, _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
    const __m512i number = _mm512_mask_blend_epi32(below, normal, small);
    const __m512i sign =
        _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(x), 24), _mm512_set1_epi32(0x80));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_or_si512(number, sign)));
  }
  static void store_part(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
  static F min(F a, F b) { return _mm512_min_ps(a, b); }              // b where either is NaN
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F brain(F a) {  // rounded to BF16, nearest even
    const __m512i bits = _mm512_castps_si512(a),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i right = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), rounded, quiet);
    return _mm512_castsi512_ps(_mm512_and_si512(right, _mm512_set1_epi32(-65536)));
  }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F with_sign(F magnitude, F sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
  }
  // Sixteen rows of sixteen become their columns.
  static void transpose(F (&x)[16]) {
    F quads[16];  // quads[4 g + c]: columns c, 4 + c, 8 + c, 12 + c of rows 4 g … 4 g + 3
    for (int g = 0; g < 16; g += 4) {
      const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(x[g], x[g + 1]));
      const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(x[g], x[g + 1]));
      const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(x[g + 2], x[g + 3]));
      const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(x[g + 2], x[g + 3]));
      quads[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
      quads[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
      quads[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
      quads[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
    }
    for (int c = 0; c < 4; ++c) {
      const F even_low = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88);
      const F odd_low = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd);
      const F even_high = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88);
      const F odd_high = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd);
      x[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
      x[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
      x[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
      x[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
  }
  static F swap_pairs(F a) { return _mm512_permute_ps(a, 0xb1); }  // lanes 2i and 2i + 1 change places
  static F scale(F a, F n) { return _mm512_scalef_ps(a, n); }      // a * 2^n, n integral within [-300, 300]
  static M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static M at_most(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static M both(M a, M b) { return static_cast<M>(a & b); }
  static uint32_t bits(M m) { return m; }
  static M mask(uint32_t bits) { return static_cast<M>(bits); }
  static F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }

  // Folded pairwise: lanes 8 apart, then 4, 2, 1.
  static float sum(F a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  static float largest(F a) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
  }
  static float lane0(F a) { return _mm512_cvtss_f32(a); }

  // Sixteen float64 sums, for reductions too long for F32.
  struct Sum {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    void add(F x) {
      low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
      high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    }
    void add_squares(F x) {  // exact products
      const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
      const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
      low = _mm512_fmadd_pd(a, a, low);
      high = _mm512_fmadd_pd(b, b, high);
    }
    void store(double* lanes) const {
      _mm512_storeu_pd(lanes, low);
      _mm512_storeu_pd(lanes + 8, high);
    }
  };

  // What is left of each angle after whole quarter turns, in F32, and how many quarter turns (mod 4) in
  // `quarters` as a float. Reduced in float64: angles up to 2^31.
  static F quarter_turns(F angle, F* quarters) {
    const __m512i three = _mm512_set1_epi64(3);
    __m256 rest[2], turns[2];
    for (int i = 0; i < 2; ++i) {
      const __m512d a =
          _mm512_cvtps_pd(i == 0 ? _mm512_castps512_ps256(angle) : _mm512_extractf32x8_ps(angle, 1));
      const __m512d n = _mm512_roundscale_pd(_mm512_mul_pd(a, _mm512_set1_pd(kTwoOverPi)),
                                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      __m512d r = _mm512_fnmadd_pd(n, _mm512_set1_pd(kHalfPiHigh), a);
      r = _mm512_fnmadd_pd(n, _mm512_set1_pd(kHalfPiLow), r);
      rest[i] = _mm512_cvtpd_ps(r);
      turns[i] = _mm512_cvtepi64_ps(_mm512_and_si512(_mm512_cvtpd_epi64(n), three));
    }
    *quarters = _mm512_insertf32x8(_mm512_castps256_ps512(turns[0]), turns[1], 1);
    return _mm512_insertf32x8(_mm512_castps256_ps512(rest[0]), rest[1], 1);
  }

  // 2^32 - 1 - words[i], rounded to F32.
  static F complement_to_float(const uint32_t* words) {
    return _mm512_cvtepu32_ps(_mm512_xor_si512(_mm512_loadu_si512(words), _mm512_set1_epi32(-1)));
  }

  // Words w of Philox counters (first + i, position, choice, 0) to words[4 i + w], i < 16. Counters are dealt
  // to lanes so that a transposition inside quarters of the registers puts the words in order.
  static void philox(uint32_t first, uint32_t position, uint32_t choice, uint64_t seed, uint32_t* words) {
    __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                                  _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i c1 = _mm512_set1_epi32(static_cast<int>(position));
    __m512i c2 = _mm512_set1_epi32(static_cast<int>(choice)), c3 = _mm512_setzero_si512();
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    const __m512i a = _mm512_set1_epi32(static_cast<int>(0xD2511F53u));
    const __m512i b = _mm512_set1_epi32(static_cast<int>(0xCD9E8D57u));
    for (int round = 0; round < 10; ++round) {
      const __m512i a_high = high_product(a, c0), a_low = _mm512_mullo_epi32(a, c0);
      const __m512i b_high = high_product(b, c2), b_low = _mm512_mullo_epi32(b, c2);
      c0 = _mm512_ternarylogic_epi32(b_high, c1, _mm512_set1_epi32(static_cast<int>(key0)), 0x96);
      c2 = _mm512_ternarylogic_epi32(a_high, c3, _mm512_set1_epi32(static_cast<int>(key1)), 0x96);
      c1 = b_low;
      c3 = a_low;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const __m512i low01 = _mm512_unpacklo_epi32(c0, c1), high01 = _mm512_unpackhi_epi32(c0, c1);
    const __m512i low23 = _mm512_unpacklo_epi32(c2, c3), high23 = _mm512_unpackhi_epi32(c2, c3);
    _mm512_storeu_si512(words, _mm512_unpacklo_epi64(low01, low23));
    _mm512_storeu_si512(words + 16, _mm512_unpackhi_epi64(low01, low23));
    _mm512_storeu_si512(words + 32, _mm512_unpacklo_epi64(high01, high23));
    _mm512_storeu_si512(words + 48, _mm512_unpackhi_epi64(high01, high23));
  }

 private:
  static __m512i high_product(__m512i a, __m512i b) {
    const __m512i even = _mm512_mul_epu32(a, b), odd = _mm512_mul_epu32(a, _mm512_srli_epi64(b, 32));
    return _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  }
};

}  // namespace qiao::cpu::avx512
