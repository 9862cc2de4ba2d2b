// The vector operations of AVX-512 F/BW/VL/DQ that linear_micro_inl.h is written in. Included inside the
// anonymous namespace of linear_*avx512*.cc.
struct Avx512 {
  static constexpr int kRows = 4, kGroups = 2, kFloatRows = 6, kPackedRows = 4;
  using F = __m512;
  using I = __m512i;
  using W = __m512i;
  using X = __m512i;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F splat(const float* p) { return _mm512_set1_ps(*p); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I zero() { return _mm512_setzero_si512(); }
  static I splat(const int32_t* p) { return _mm512_set1_epi32(*p); }
  static I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I shift_left(I a, int count) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(count)); }
  static W load_weights(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static X splat_activations(const int8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
  static constexpr bool kShorts = true;
  static I multiply_pairs(W w, X x) { return _mm512_maddubs_epi16(w, x); }
  static I add16(I a, I b) { return _mm512_add_epi16(a, b); }
  static I add_pairs(I sum, I pairs) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  // Of 8 bits: as 2 * (w / 2) + w % 2, whose pairs fit 16 bits.
  template <Width>
  static I dot(I sum, W w, X x) {
    const I ones = _mm512_set1_epi16(1);
    const I half = _mm512_and_si512(_mm512_srli_epi16(w, 1), _mm512_set1_epi8(127));
    const I rest = _mm512_and_si512(w, _mm512_set1_epi8(1));
    const I twice = _mm512_madd_epi16(_mm512_maddubs_epi16(half, x), _mm512_set1_epi16(2));
    return _mm512_add_epi32(_mm512_add_epi32(sum, twice),
                            _mm512_madd_epi16(_mm512_maddubs_epi16(rest, x), ones));
  }
  static F load_step(const float* p) { return load(p); }
  static F splat_step(const float* p) { return splat(p); }
  static F step(F w, F x, F sum) { return fma(w, x, sum); }
  static F load_step(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // F8_128 (linear_f8_inl.h): four codes of each of 16 rows to numbers times 2^-8; `most` keeps the largest
  // code at each place, without its sign, twice over.
  static constexpr int kF8Blocks = 2;
  using Codes = I;
  static void f8_numbers(const uint8_t* p, F (&w)[4], Codes& most) {
    alignas(64) static constexpr uint16_t kPairs[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                        22, 24, 26, 28, 30, 1,  3,  5,  7,  9,  11,
                                                        13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
    const I codes = _mm512_loadu_si512(p);
    most = _mm512_max_epu8(most, _mm512_add_epi8(codes, codes));
    const I pairs = _mm512_permutexvar_epi16(_mm512_load_si512(kPairs), codes);  // of k: [2][16 rows][2]
    const I bits = _mm512_set1_epi16(static_cast<int16_t>(0xbf80));
    const I even = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(pairs, 8), 1), bits);
    const I odd = _mm512_and_si512(_mm512_srai_epi16(pairs, 1), bits);
    w[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(even));
    w[1] = _mm512_cvtph_ps(_mm512_castsi512_si256(odd));
    w[2] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(even, 1));
    w[3] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(odd, 1));
  }
  static bool f8_nan(Codes most) {
    return _mm512_cmpeq_epi8_mask(most, _mm512_set1_epi8(static_cast<char>(0xfe))) != 0;
  }
  struct Two {
    F low, high;
  };
  static Two load_step(const HalfPair* p) {
    const I pairs = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
  }
  static Two splat_step(const FloatPair* p) { return {splat(&p->low), splat(&p->high)}; }
  static F step(Two w, Two x, F sum) { return fma(w.high, x.high, fma(w.low, x.low, sum)); }
};
