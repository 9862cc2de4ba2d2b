// The scales of K-quants for AVX2, where gcc 12 makes three times the instructions of linear_scales_inl.h's
// loops: the same values, eight rows at a time, about six cycles a tile of 16 rows. Included inside the
// anonymous namespace of linear_avx2.cc.

inline __m256 half8(const uint8_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// d times byte j of each dword, unsigned.
inline __m256 times_byte(__m256 d, __m256i words, int j) {
  const __m256i lanes = _mm256_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12);
  const __m256i zero_above = _mm256_set1_epi32(static_cast<int>(0x80808000u));
  const __m256i index = _mm256_or_si256(_mm256_add_epi32(lanes, _mm256_set1_epi32(j)), zero_above);
  return _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_shuffle_epi8(words, index)));
}

// Q4_K and Q5_K: 8 pairs of 6-bit (scale, minimum) in 12 bytes.
template <int quant_bytes>
void scales_k4_avx2(const std::byte* chunk, int64_t elements, int64_t stride, float* scales) {
  const int64_t blocks = elements / 256;
  const uint8_t* packed = bytes_of(chunk) + blocks * quant_bytes * 16;
  const uint8_t* halves = packed + blocks * 12 * 16;
  for (int64_t b = 0; b < blocks; ++b, packed += 192, halves += 64, scales += 8 * stride) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256 d = half8(halves + 16 * h);
      const __m256 minus = _mm256_xor_ps(half8(halves + 32 + 16 * h), _mm256_set1_ps(-0.0f));
      const __m256i s0 = load256(packed + 32 * h), s1 = load256(packed + 64 + 32 * h),
                    s2 = load256(packed + 128 + 32 * h);
      const __m256i scale[2] = {mask256(s0, 63),
                                _mm256_or_si256(mask256(s2, 15), mask256(shifted(s0, 2), 48))};
      const __m256i minimum[2] = {mask256(s1, 63),
                                  _mm256_or_si256(mask256(shifted(s2, 4), 15), mask256(shifted(s1, 2), 48))};
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        _mm256_storeu_ps(scales + j * stride + 8 * h, times_byte(d, scale[j / 4], j % 4));
        _mm256_storeu_ps(scales + j * stride + 16 + 8 * h, times_byte(minus, minimum[j / 4], j % 4));
      }
    }
  }
}

void scales_q6_k_avx2(const std::byte* chunk, int64_t elements, int64_t stride, float* scales) {
  const int64_t blocks = elements / 256;
  const uint8_t* packed = bytes_of(chunk) + blocks * 192 * 16;
  const uint8_t* halves = packed + blocks * 16 * 16;
  for (int64_t b = 0; b < blocks; ++b, packed += 256, halves += 32, scales += 8 * stride) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256 d = half8(halves + 16 * h);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const __m256i words = load256(packed + q * 64 + 32 * h);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const __m256i scale = _mm256_srai_epi32(_mm256_slli_epi32(words, 24 - 8 * i), 24);
          _mm256_storeu_ps(scales + (2 * q + i / 2) * stride + i % 2 * 16 + 8 * h,
                           _mm256_mul_ps(d, _mm256_cvtepi32_ps(scale)));
        }
      }
    }
  }
}
