// The int8 dot products of AVX2, in its own shapes: vpmaddubsw multiplies bytes and sums pairs to 16 bits,
// which are added as 16 bits while they surely fit. Included inside the anonymous namespace of
// linear_avx2.cc, after linear_micro_inl.h and Avx2.
//
// Many rows: a register tile of 4 rows of x by one group, whose 16-bit sums take 8 of 16 registers, so the
// F32 sums stay in the L1 cache and are touched once a tile of 32. A vector of 8 rows of W by 32 elements
// costs 8 vpmaddubsw, 7 vpaddw and 5 more to scale and add (6 with a minimum): at most 76% of the peak on Zen
// 3, whose four pipes start four such a cycle; 61% for Q6_K, whose sums must be widened four times. Reached
// there with two threads: 45 to 55% of the peak for 4-bit quants, 35 to 40% for Q6_K, 28% for Q8_0, whose
// every product is widened.
//
// A few rows (decoding): memory is read in order, quants, then scales, for which the integer sums wait in the
// L1 cache, and fetched 3 KB ahead: on Zen 3 two cores read 37 GB/s in order and 20 where the scales at a
// chunk's end come first; its prefetcher alone does not keep up with reads that have work between them.
// Reached with one row and matrices of megabytes: 28 to 31 GB/s for Q4_K and Q4_1, 36 for Q8_0, 25 to 28 for
// Q6_K, whose unpacking is then the limit.

inline __m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i mask256(__m256i v, int byte) {
  return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(byte)));
}
// Bits to the right, to the left where negative; what crosses into another byte is masked away.
inline __m256i shifted(__m256i v, int count) {
  return count > 0 ? _mm256_srli_epi16(v, count) : count < 0 ? _mm256_slli_epi16(v, -count) : v;
}

// Where a unit's planes begin.
struct Planes {
  const uint8_t *low, *high;
};

// A format's struct in registers: the quants of quad `quad` of tile `tile` of a unit, of rows 8 half to
// 8 half + 7. All three are constants once loops are unrolled.
template <class Format>
struct InRegisters;

struct SharedForm {};
template <>
struct InRegisters<SharedForm> {
  static constexpr int kTiles = 1;
  static Planes planes(const uint8_t* chunk, int64_t, int64_t k) { return {chunk + k * 16, nullptr}; }
  static __m256i quants(const Planes& p, int, int quad, int half) {
    return load256(p.low + quad * 64 + half * 32);
  }
};
template <>
struct InRegisters<Bytes32> : InRegisters<SharedForm> {};

template <>
struct InRegisters<Nibbles32> {
  static constexpr int kTiles = 1;
  static Planes planes(const uint8_t* chunk, int64_t, int64_t k) { return {chunk + k * 8, nullptr}; }
  static __m256i quants(const Planes& p, int, int quad, int half) {
    return mask256(shifted(load256(p.low + quad % 4 * 64 + half * 32), quad / 4 * 4), 15);
  }
};

template <const uint8_t* table>
struct InRegisters<Table32<table>> : InRegisters<Nibbles32> {
  static __m256i quants(const Planes& p, int tile, int quad, int half) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return _mm256_shuffle_epi8(t, InRegisters<Nibbles32>::quants(p, tile, quad, half));
  }
};

template <>
struct InRegisters<Five32> {
  static constexpr int kTiles = 1;
  static Planes planes(const uint8_t* chunk, int64_t elements, int64_t k) {
    return {chunk + k * 8, chunk + elements * 8 + k * 2};
  }
  static __m256i quants(const Planes& p, int tile, int quad, int half) {
    const __m256i fifth = mask256(shifted(load256(p.high + half * 32), quad - 4), 16);
    return _mm256_or_si256(InRegisters<Nibbles32>::quants(p, tile, quad, half), fifth);
  }
};

template <>
struct InRegisters<FourK> {
  static constexpr int kTiles = 2;
  static Planes planes(const uint8_t* chunk, int64_t, int64_t k) { return {chunk + k * 8, nullptr}; }
  static __m256i quants(const Planes& p, int tile, int quad, int half) {
    return mask256(shifted(load256(p.low + quad * 64 + half * 32), tile * 4), 15);
  }
};

template <>
struct InRegisters<FiveK> {
  static constexpr int kTiles = 8;
  static Planes planes(const uint8_t* chunk, int64_t elements, int64_t k) {
    return {chunk + k * 8, chunk + elements * 8 + k * 2};
  }
  static __m256i quants(const Planes& p, int tile, int quad, int half) {
    const __m256i nibbles = load256(p.low + tile / 2 * 512 + quad * 64 + half * 32);
    const __m256i fifth = mask256(shifted(load256(p.high + quad * 64 + half * 32), tile - 4), 16);
    return _mm256_or_si256(mask256(shifted(nibbles, tile % 2 * 4), 15), fifth);
  }
};

template <>
struct InRegisters<SixK> {
  static constexpr int kTiles = 4;
  static Planes planes(const uint8_t* chunk, int64_t elements, int64_t k) {
    return {chunk + k * 8, chunk + elements * 8 + k * 4};
  }
  static __m256i quants(const Planes& p, int tile, int quad, int half) {
    const __m256i nibbles = load256(p.low + tile % 2 * 512 + quad * 64 + half * 32);
    const __m256i top = mask256(shifted(load256(p.high + quad * 64 + half * 32), tile * 2 - 4), 48);
    return _mm256_or_si256(mask256(shifted(nibbles, tile / 2 * 4), 15), top);
  }
};

template <>
struct InRegisters<TwoK> {
  static constexpr int kTiles = 4;
  static Planes planes(const uint8_t* chunk, int64_t, int64_t k) { return {chunk + k * 4, nullptr}; }
  static __m256i quants(const Planes& p, int tile, int quad, int half) {
    return mask256(shifted(load256(p.low + quad * 64 + half * 32), tile * 2), 3);
  }
};

template <>
struct InRegisters<ThreeK> {
  static constexpr int kTiles = 8;
  static Planes planes(const uint8_t* chunk, int64_t elements, int64_t k) {
    return {chunk + k * 4, chunk + elements * 4 + k * 2};
  }
  static __m256i quants(const Planes& p, int tile, int quad, int half) {
    const __m256i pairs = load256(p.low + tile / 4 * 512 + quad * 64 + half * 32);
    const __m256i third = mask256(shifted(load256(p.high + quad * 64 + half * 32), tile - 2), 4);
    return _mm256_or_si256(mask256(shifted(pairs, tile % 4 * 2), 3), third);
  }
};

inline __m256i broadcast_quad(const int8_t* x) {
  int32_t word;
  __builtin_memcpy(&word, x, 4);
  return _mm256_set1_epi32(word);
}
// gcc 12 puts additions off and spills what they wait for: this keeps one in its place.
inline void pin(__m256i& v) { asm volatile("" : "+x"(v)); }
inline __m256i widened(__m256i shorts) { return _mm256_madd_epi16(shorts, _mm256_set1_epi16(1)); }

// Integer dot products of part `part` of a tile (of Shape::kHalves), offset included.
//
// Of 8 bits, which are taken less 128: |w| times x with w's sign, whose pairs fit 16 bits (2 * 128 * 127).
template <class Format, Family family, int M>
[[gnu::always_inline]] inline void byte_dots(const Planes& planes, int tile, int part,
                                             const int8_t* const (&x)[M], __m256i (&dot)[M][2]) {
  constexpr int kQuads = Shape<family>::kQuads;
#pragma GCC unroll 8
  for (int i = 0; i < kQuads; ++i) {
    const int quad = part * kQuads + i;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i quants = InRegisters<Format>::quants(planes, tile, quad, h);
      const __m256i w = _mm256_xor_si256(quants, _mm256_set1_epi8(-128)), size = _mm256_abs_epi8(w);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const __m256i signed_x = _mm256_sign_epi8(broadcast_quad(x[m] + quad * 4), w);
        const __m256i sums = widened(_mm256_maddubs_epi16(size, signed_x));
        dot[m][h] = i == 0 ? sums : _mm256_add_epi32(dot[m][h], sums);
        pin(dot[m][h]);
      }
    }
  }
}

// Of fewer bits: runs of quads whose sums fit 16 bits.
template <class Format, Family family, Width width, int M>
[[gnu::always_inline]] inline void run_dots(const Planes& planes, int tile, int part,
                                            const int8_t* const (&x)[M], __m256i (&dot)[M][2]) {
  constexpr int kQuads = Shape<family>::kQuads;
  constexpr int kRun = pairs_that_fit(width) < kQuads ? pairs_that_fit(width) : kQuads;
  __m256i run[M][2];
#pragma GCC unroll 8
  for (int i = 0; i < kQuads; ++i) {
    const int quad = part * kQuads + i;
    const __m256i w[2] = {InRegisters<Format>::quants(planes, tile, quad, 0),
                          InRegisters<Format>::quants(planes, tile, quad, 1)};
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const __m256i activations = broadcast_quad(x[m] + quad * 4);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m256i pairs = _mm256_maddubs_epi16(w[h], activations);
        run[m][h] = i % kRun == 0 ? pairs : _mm256_add_epi16(run[m][h], pairs);
        pin(run[m][h]);
        if (i % kRun != kRun - 1) continue;
        dot[m][h] = i < kRun ? widened(run[m][h]) : _mm256_add_epi32(dot[m][h], widened(run[m][h]));
        pin(dot[m][h]);
      }
    }
  }
}

template <class Format, Family family, Width width, int M>
[[gnu::always_inline]] inline void tile_dots(const Planes& planes, int tile, int part,
                                             const int8_t* const (&x)[M], const TileMeta* const (&meta)[M],
                                             int offset_shift, __m256i (&dot)[M][2]) {
  using S = Shape<family>;
  if constexpr (width == Width::kEight) {
    byte_dots<Format, family, M>(planes, tile, part, x, dot);
  } else {
    run_dots<Format, family, width, M>(planes, tile, part, x, dot);
    if constexpr (S::kMinimum) return;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const TileMeta& t = *meta[m];
      const int32_t minus = !S::kTwo    ? t.minus_sum
                            : part == 0 ? t.minus_sum_low
                                        : t.minus_sum - t.minus_sum_low;
      const __m256i start = _mm256_set1_epi32(minus * (1 << offset_shift));
      dot[m][0] = _mm256_add_epi32(dot[m][0], start);
      dot[m][1] = _mm256_add_epi32(dot[m][1], start);
    }
  }
}

// The scales of one part of a tile of a group, and after the last part the minima.
template <Family family>
struct TileScales {
  using S = Shape<family>;
  __m256 scale[2], minimum[2], minimum_high[2];

  [[gnu::always_inline]] TileScales(const float* scales, int part) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      scale[h] = _mm256_loadu_ps(scales + part * 16 + h * 8);
      if (!S::kMinimum || part < S::kHalves - 1) continue;
      minimum[h] = _mm256_loadu_ps(scales + S::kHalves * 16 + h * 8);
      if (S::kTwo) minimum_high[h] = _mm256_loadu_ps(scales + S::kHalves * 16 + 16 + h * 8);
    }
  }
  // sum + dot * (scale * x.scale), then the minimum's part.
  [[gnu::always_inline]] void add(const __m256i (&dot)[2], const TileMeta& t, int part,
                                  __m256 (&sum)[2]) const {
    const __m256 x_scale = _mm256_broadcast_ss(&t.scale), x_sum = _mm256_broadcast_ss(&t.scaled_sum);
    __m256 low, high;
    if (S::kMinimum && S::kTwo) {
      low = _mm256_set1_ps(static_cast<float>(-t.minus_sum_low));
      high = _mm256_set1_ps(static_cast<float>(t.minus_sum_low - t.minus_sum));
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      sum[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[h]), _mm256_mul_ps(scale[h], x_scale), sum[h]);
      if (!S::kMinimum || part < S::kHalves - 1) continue;
      if (S::kTwo) {
        const __m256 both = _mm256_fmadd_ps(minimum_high[h], high, _mm256_mul_ps(minimum[h], low));
        sum[h] = _mm256_fmadd_ps(both, x_scale, sum[h]);
      } else {
        sum[h] = _mm256_fmadd_ps(minimum[h], x_sum, sum[h]);
      }
    }
  }
};

// M rows of x by one group in the shared form.
template <Family family, Width width, int M>
void multiply_rows(const DotQ8& a, int group, int64_t row) {
  using S = Shape<family>;
  float* const sums = a.sums + row * kPair * 16 + group * 16;
  const uint8_t* w = a.quants[static_cast<size_t>(group)];
  const int8_t* x[M];
  const TileMeta* meta[M];
  for (int m = 0; m < M; ++m) {
    x[m] = a.x + (row + m) * a.x_stride;
    meta[m] = a.meta + (row + m) * a.meta_stride;
  }
  const float* scales = a.scales + group * S::kFloats;
  const std::byte* next = a.ahead[static_cast<size_t>(group)];
  const int64_t tiles = a.tiles, ahead_bytes = a.ahead_bytes, step = a.ahead_for_tile;
  const int offset_shift = a.offset_shift;
  int64_t ahead = row / 4 * tiles * step;
  for (int64_t b = 0; b < tiles; ++b) {
    for (const int64_t end = ahead + step < ahead_bytes ? ahead + step : ahead_bytes; ahead < end;
         ahead += 64) {
      __builtin_prefetch(next + ahead, 0, 2);
    }
#pragma GCC unroll 2
    for (int part = 0; part < S::kHalves; ++part) {
      __m256i dot[M][2];
      tile_dots<SharedForm, family, width, M>({w, nullptr}, 0, part, x, meta, offset_shift, dot);
      const TileScales<family> by(scales, part);
      float* at = sums;
      asm("" : "+r"(at));  // one base register, not eight spilled ones
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m, at += kPair * 16) {
        __m256 sum[2] = {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)};
        by.add(dot[m], *meta[m], part, sum);
        _mm256_storeu_ps(at, sum[0]);
        _mm256_storeu_ps(at + 8, sum[1]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      x[m] += 32;
      ++meta[m];
    }
    w += 512;
    scales += kPair * S::kFloats;
  }
}

template <Family family, Width width>
void multiply_shared(const DotQ8& a) {
  for (int group = 0; group < a.groups; ++group) {
    int64_t row = 0;
    for (; row + 4 <= a.rows; row += 4) multiply_rows<family, width, 4>(a, group, row);
    if (row + 2 <= a.rows) {
      multiply_rows<family, width, 2>(a, group, row);
      row += 2;
    }
    if (row < a.rows) multiply_rows<family, width, 1>(a, group, row);
  }
}

// Chains of additions that a row's sum is split into: one, the order that batch invariance fixes.
// bench/batch_invariance_bench.cc builds the kernels with more, to know what that order costs.
#ifndef QIAO_SUM_CHAINS
#define QIAO_SUM_CHAINS 1
#endif

// Sums of a chunk whose integer dot products and scales are there. A chain of additions for each row and
// half: few rows wait for them, which the next chunk's first reads hide.
template <Family family, int M>
[[gnu::always_inline]] inline void add_chunk(const DotPacked& a, const int32_t* dots, const TileMeta* meta,
                                             float* sums) {
  using S = Shape<family>;
  constexpr int kChainsOfFewRows = QIAO_SUM_CHAINS, kChains = M > 2 ? 1 : kChainsOfFewRows;
  __m256 sum[kChains][M][2];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    sum[0][m][0] = _mm256_loadu_ps(sums + m * kPair * 16);
    sum[0][m][1] = _mm256_loadu_ps(sums + m * kPair * 16 + 8);
    for (int c = 1; c < kChains; ++c) sum[c][m][0] = sum[c][m][1] = _mm256_setzero_ps();
  }
  const float* scales = a.scales;
  const auto add_tile = [&](__m256(&to)[M][2]) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int part = 0; part < S::kHalves; ++part) {
      const TileScales<family> by(scales, part);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m, dots += 16) {
        const auto* from = reinterpret_cast<const __m256i*>(dots);
        by.add({_mm256_load_si256(from), _mm256_load_si256(from + 1)}, meta[m * a.meta_stride], part, to[m]);
      }
    }
    ++meta;
    scales += S::kFloats;
  };
  int64_t tile = a.elements / 32;
  for (; tile >= kChains; tile -= kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) add_tile(sum[c]);
  }
  for (; tile > 0; --tile) add_tile(sum[0]);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    for (int c = 1; c < kChains; ++c) {
      sum[0][m][0] = _mm256_add_ps(sum[0][m][0], sum[c][m][0]);
      sum[0][m][1] = _mm256_add_ps(sum[0][m][1], sum[c][m][1]);
    }
    _mm256_storeu_ps(sums + m * kPair * 16, sum[0][m][0]);
    _mm256_storeu_ps(sums + m * kPair * 16 + 8, sum[0][m][1]);
  }
}

// How far ahead of its reading the memory is fetched; what follows a chunk or a panel is the next.
constexpr int64_t kAheadBytes = 3072;

// M rows of x by one group's packed chunk; the scales are unpacked after the first such rows.
template <class Format, Family family, Width width, int M>
void multiply_packed_rows(const DotPacked& a, int64_t row) {
  using Q = InRegisters<Format>;
  const auto* chunk = reinterpret_cast<const uint8_t*>(a.chunk);
  int32_t* dots = a.dots;
  const int8_t* x[M];
  const TileMeta* meta[M];
  for (int m = 0; m < M; ++m) {
    x[m] = a.x + (row + m) * a.x_stride;
    meta[m] = a.meta + (row + m) * a.meta_stride;
  }
  const int64_t elements = a.elements;
  const int offset_shift = a.offset_shift;
  const uint8_t* ahead = chunk + kAheadBytes;
  for (int64_t k = 0; k < elements; k += Q::kTiles * 32) {
    const Planes planes = Q::planes(chunk, elements, k);
    for (int64_t bytes = Q::kTiles * a.ahead_for_tile; bytes > 0; bytes -= 64, ahead += 64) {
      __builtin_prefetch(ahead, 0, 3);
    }
#pragma GCC unroll 8
    for (int tile = 0; tile < Q::kTiles; ++tile) {
#pragma GCC unroll 2
      for (int part = 0; part < Shape<family>::kHalves; ++part) {
        __m256i dot[M][2];
        tile_dots<Format, family, width, M>(planes, tile, part, x, meta, offset_shift, dot);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m, dots += 16) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(dots), dot[m][0]);
          _mm256_store_si256(reinterpret_cast<__m256i*>(dots) + 1, dot[m][1]);
        }
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        x[m] += 32;
        ++meta[m];
      }
    }
  }
  if (row == 0) a.unpack_scales(a.chunk, a.elements, Shape<family>::kFloats, a.scales);
  add_chunk<family, M>(a, a.dots, a.meta + row * a.meta_stride, a.sums + row * kPair * 16);
}

template <class Format, Family family, Width width>
void multiply_packed(const DotPacked& a) {
  if (a.rows == 4) return multiply_packed_rows<Format, family, width, 4>(a, 0);
  if (a.rows >= 2) multiply_packed_rows<Format, family, width, 2>(a, 0);
  if (a.rows % 2 != 0) multiply_packed_rows<Format, family, width, 1>(a, a.rows - 1);
}

// linear_unpack_inl.h's quantize, which gcc 12 keeps mostly scalar: the same operations on 8 lanes.
void quantize_avx2(const float* x, int64_t columns, int8_t* quants, TileMeta* meta) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t k = 0; k < columns; k += 32, x += 32, quants += 32, ++meta) {
    __m256 v[4];
    __m256i most = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    const float maximum = _mm_cvtss_f32(_mm_castsi128_ps(four));
    const bool zero = maximum < kQ8Smallest;
    const __m256 inverse = _mm256_set1_ps(zero ? 0.0f : 127.0f / maximum);
    __m256i rounded[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __m256 scaled = _mm256_max_ps(_mm256_mul_ps(v[i], inverse), _mm256_set1_ps(-127.0f));
      scaled = _mm256_min_ps(scaled, _mm256_set1_ps(127.0f));
      rounded[i] = _mm256_cvtps_epi32(scaled);  // half to even
    }
    const __m256i shorts[2] = {_mm256_packs_epi32(rounded[0], rounded[1]),
                               _mm256_packs_epi32(rounded[2], rounded[3])};
    const __m256i mixed = _mm256_packs_epi16(shorts[0], shorts[1]);  // dwords 0 2 4 6 1 3 5 7
    const __m256i bytes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(quants), bytes);
    const __m256i sums = widened(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes));
    const __m128i pairs = _mm_hadd_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i halves = _mm_hadd_epi32(pairs, pairs);  // low 16, high 16, again
    const int32_t low = _mm_cvtsi128_si32(halves), all = low + _mm_extract_epi32(halves, 1);
    meta->scale = zero ? 0.0f : maximum / 127.0f;
    meta->scaled_sum = meta->scale * static_cast<float>(all);
    meta->minus_sum = -all;
    meta->minus_sum_low = -low;
  }
}

template <>
struct Dots<Avx2> {
  template <Family family, Width width>
  static void shared(const DotQ8& a) {
    multiply_shared<family, width>(a);
  }
  template <class Format, Family family, Width width>
  static void packed(const DotPacked& a) {
    multiply_packed<Format, family, width>(a);
  }
  template <class Format>
  static constexpr int kMostPackedRows = 4;
};
