// The dot-product kernels over the shared form, for a set V of vector operations. Included after
// linear_unpack_inl.h, inside the same anonymous namespace.
//
// Plan: a register tile of V::kRows rows of x by V::kGroups groups of 16 rows of W; its F32 sums stay in
// registers for a whole chunk of k, integer sums for a tile of 32. A dword of 4 activations is broadcast from
// memory, weights stream from the L1 cache (a pair of groups' chunk is 20 KB). The limit on Zen 4: both
// 512-bit multiply pipes take 8 vpdpbusd, a multiplication and a fused multiply-add for each 16 x 32 tile and
// row, so 80% of the dot-product peak (73% with a minimum, 67% with two scales a tile). Reached there: 50-60%
// of the peak from 16 rows on, 45% for Q6_K. One row reads 20-28 GB/s a core, more than a core's share of
// memory.

template <Family family>
struct Shape {
  static constexpr bool kTwo = family == Family::kOffset16 || family == Family::kMinimum16;
  static constexpr bool kMinimum = family == Family::kMinimum32 || family == Family::kMinimum16;
  static constexpr int kHalves = kTwo ? 2 : 1, kQuads = 8 / kHalves;
  static constexpr int kFloats = 16 * kHalves * (kMinimum ? 2 : 1);
};

template <class V, int M, int G, Family family>
inline __attribute__((always_inline)) void start_dots(const TileMeta* meta, int64_t meta_stride, int half,
                                                      int offset_shift, typename V::I (&dot)[M][G]) {
  using S = Shape<family>;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    typename V::I start = V::zero();
    if (!S::kMinimum) {
      const TileMeta& t = meta[m * meta_stride];
      start = V::splat(!S::kTwo || half == 1 ? &t.minus_sum : &t.minus_sum_low);
      if (S::kTwo && half == 1) start = V::sub(start, V::splat(&t.minus_sum_low));
      start = V::shift_left(start, offset_shift);
    }
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) dot[m][g] = start;
  }
}

// Quads of 4 products whose pairs' sums fit 16 bits: 2 * 15 * 127 * 8, 2 * 31 * 127 * 4 and 2 * 63 * 127 * 2
// do.
constexpr int pairs_that_fit(Width width) {
  return width == Width::kFour ? 8 : width == Width::kFive ? 4 : width == Width::kSix ? 2 : 0;
}

// One tile of 32 elements of M rows of x and G groups, added to sum.
template <class V, int M, int G, Family family, Width width>
inline __attribute__((always_inline)) void add_tile(const uint8_t* const (&w)[G], const float* scales,
                                                    const int8_t* x, int64_t x_stride, const TileMeta* meta,
                                                    int64_t meta_stride, int offset_shift,
                                                    typename V::F (&sum)[M][G]) {
  using F = typename V::F;
  using I = typename V::I;
  using S = Shape<family>;
#pragma GCC unroll 2
  for (int half = 0; half < S::kHalves; ++half) {
    I dot[M][G];
    // A run of quads is summed in 16 bits where the set has no better way and the quants are small enough.
    constexpr int kRun =
        V::kShorts ? (pairs_that_fit(width) < S::kQuads ? pairs_that_fit(width) : S::kQuads) : 0;
    if constexpr (kRun == 0) start_dots<V, M, G, family>(meta, meta_stride, half, offset_shift, dot);
    I run[M][G];
#pragma GCC unroll 8
    for (int i = 0; i < S::kQuads; ++i) {
      const int quad = half * S::kQuads + i;
      typename V::W weights[G];
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) weights[g] = V::load_weights(w[g] + quad * 64);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const typename V::X activations = V::splat_activations(x + m * x_stride + quad * 4);
#pragma GCC unroll 2
        for (int g = 0; g < G; ++g) {
          if constexpr (kRun == 0) {
            dot[m][g] = V::template dot<width>(dot[m][g], weights[g], activations);
          } else {
            const I pairs = V::multiply_pairs(weights[g], activations);
            run[m][g] = i % kRun == 0 ? pairs : V::add16(run[m][g], pairs);
          }
        }
      }
      if constexpr (kRun != 0) {
        if (i % kRun != kRun - 1) continue;
        if (i < kRun) start_dots<V, M, G, family>(meta, meta_stride, half, offset_shift, dot);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
          for (int g = 0; g < G; ++g) dot[m][g] = V::add_pairs(dot[m][g], run[m][g]);
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const F x_scale = V::splat(&meta[m * meta_stride].scale);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const F scale = V::load(scales + g * S::kFloats + half * 16);
        sum[m][g] = V::fma(V::to_float(dot[m][g]), V::mul(scale, x_scale), sum[m][g]);
      }
    }
  }
  if (!S::kMinimum) return;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const TileMeta& t = meta[m * meta_stride];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      const float* least = scales + g * S::kFloats + S::kHalves * 16;
      if (S::kTwo) {
        const I minus_low = V::splat(&t.minus_sum_low);
        const F low = V::to_float(V::sub(V::zero(), minus_low));
        const F high = V::to_float(V::sub(minus_low, V::splat(&t.minus_sum)));
        const F both = V::fma(V::load(least + 16), high, V::mul(V::load(least), low));
        sum[m][g] = V::fma(both, V::splat(&t.scale), sum[m][g]);
      } else {
        sum[m][g] = V::fma(V::load(least), V::splat(&t.scaled_sum), sum[m][g]);
      }
    }
  }
}

template <class V, int M, int G>
inline __attribute__((always_inline)) void load_sums(const float* sums, typename V::F (&sum)[M][G]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) sum[m][g] = V::load(sums + m * kPair * 16 + g * 16);
  }
}

template <class V, int M, int G>
inline __attribute__((always_inline)) void store_sums(float* sums, const typename V::F (&sum)[M][G]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) V::store(sums + m * kPair * 16 + g * 16, sum[m][g]);
  }
}

template <class V, int M, int G, Family family, Width width>
inline __attribute__((always_inline)) void dot_q8_rows(const DotQ8& a, int group, int64_t row) {
  constexpr int kFloats = Shape<family>::kFloats;
  float* sums = a.sums + row * kPair * 16 + group * 16;
  typename V::F sum[M][G];
  load_sums<V, M, G>(sums, sum);
  const uint8_t* w[G];
  for (int g = 0; g < G; ++g) w[g] = a.quants[static_cast<size_t>(group) + static_cast<size_t>(g)];
  const int8_t* x = a.x + row * a.x_stride;
  const TileMeta* meta = a.meta + row * a.meta_stride;
  const float* scales = a.scales + group * kFloats;
  int64_t ahead = (row / V::kRows) * a.tiles * a.ahead_for_tile;
  for (int64_t b = 0; b < a.tiles; ++b) {
    for (const int64_t end = ahead + a.ahead_for_tile < a.ahead_bytes ? ahead + a.ahead_for_tile
                                                                      : a.ahead_bytes;
         ahead < end; ahead += 64) {
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g)
        __builtin_prefetch(a.ahead[static_cast<size_t>(group) + static_cast<size_t>(g)] + ahead, 0, 2);
    }
    add_tile<V, M, G, family, width>(w, scales, x, a.x_stride, meta, a.meta_stride, a.offset_shift, sum);
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) w[g] += 512;
    x += 32;
    ++meta;
    scales += kPair * kFloats;
  }
  store_sums<V, M, G>(sums, sum);
}

// Unit by unit: unpacked to a buffer that the store queue forwards from, and multiplied at once.
template <class V, class Format, Family family, Width width, int M>
void dot_packed_rows(const DotPacked& a) {
  constexpr int kTiles = Format::kUnit / 32;
  typename V::F sum[M][1];
  load_sums<V, M, 1>(a.sums, sum);
  const auto* chunk = reinterpret_cast<const uint8_t*>(a.chunk);
  int64_t ahead = a.ahead_scales;
  const int8_t* x = a.x;
  const TileMeta* meta = a.meta;
  const float* scales = a.scales;
  for (int64_t k = 0; k < a.elements; k += Format::kUnit) {
    alignas(64) uint8_t buffer[Format::kUnit * 16];
    const uint8_t* quants = buffer;
    if constexpr (std::is_same_v<Format, Bytes32>) {
      quants = chunk + k * 16;
    } else {
      Format::unit(chunk, a.elements, k, buffer);
    }
    for (int64_t bytes = kTiles * a.ahead_for_tile; bytes > 0; bytes -= 64) {
      __builtin_prefetch(a.ahead + ahead, 0, 3);
      ahead += 64;
      if (ahead >= a.ahead_bytes) ahead = 0;
    }
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint8_t* w[1] = {quants + tile * 512};
      add_tile<V, M, 1, family, width>(w, scales, x, a.x_stride, meta, a.meta_stride, a.offset_shift, sum);
      x += 32;
      ++meta;
      scales += Shape<family>::kFloats;
    }
  }
  store_sums<V, M, 1>(a.sums, sum);
}

template <class V, class Format>
inline constexpr int kPackedRows =
    Format::kPackedRows < V::kPackedRows ? Format::kPackedRows : V::kPackedRows;

template <class V, class Format, Family family, Width width>
void dot_packed(const DotPacked& a) {
  a.unpack_scales(a.chunk, a.elements, Shape<family>::kFloats, a.scales);
  if constexpr (kPackedRows < V, Format >> 1) {
    if (a.rows == 2) return dot_packed_rows<V, Format, family, width, 2>(a);
  }
  if constexpr (kPackedRows < V, Format >> 2) {
    if (a.rows == 3) return dot_packed_rows<V, Format, family, width, 3>(a);
    if (a.rows == 4) return dot_packed_rows<V, Format, family, width, 4>(a);
  }
  dot_packed_rows<V, Format, family, width, 1>(a);
}

template <class V, int G, Family family, Width width>
void dot_q8_groups(const DotQ8& a, int group) {
  int64_t row = 0;
  for (; row + V::kRows <= a.rows; row += V::kRows) dot_q8_rows<V, V::kRows, G, family, width>(a, group, row);
  if constexpr (V::kRows > 2) {
    if (row + 2 <= a.rows) {
      dot_q8_rows<V, 2, G, family, width>(a, group, row);
      row += 2;
    }
  }
  for (; row < a.rows; ++row) dot_q8_rows<V, 1, G, family, width>(a, group, row);
}

template <class V, Family family, Width width>
void dot_q8(const DotQ8& a) {
  if (V::kGroups == 2 && a.groups == 2) {
    dot_q8_groups<V, V::kGroups, family, width>(a, 0);
  } else {
    for (int group = 0; group < a.groups; ++group) dot_q8_groups<V, 1, family, width>(a, group);
  }
}

// A step of k is a WeightStep of 16 rows by an XStep: V::step multiplies it in.
struct Half {
  uint16_t bits;
};
struct HalfPair {  // of BF16
  uint16_t low, high;
};
struct FloatPair {
  float low, high;
};

template <class V, typename WeightStep, typename XStep, int M, int G>
inline __attribute__((always_inline)) void dot_float_rows(const DotFloat& a, int group, int64_t row) {
  float* sums = a.sums + row * kPair * 16 + group * 16;
  typename V::F sum[M][G];
  load_sums<V, M, G>(sums, sum);
  const WeightStep* w[G];
  for (int g = 0; g < G; ++g)
    w[g] = static_cast<const WeightStep*>(a.weights[static_cast<size_t>(group) + static_cast<size_t>(g)]);
  const XStep* x[M];
  for (int m = 0; m < M; ++m) x[m] = static_cast<const XStep*>(a.x) + (row + m) * a.x_stride;
  const int64_t steps = a.steps;
  for (int64_t k = 0; k < steps; ++k) {
    decltype(V::load_step(w[0])) weights[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) weights[g] = V::load_step(w[g] + k * 16);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const auto activation = V::splat_step(x[m] + k);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) sum[m][g] = V::step(weights[g], activation, sum[m][g]);
    }
  }
  store_sums<V, M, G>(sums, sum);
}

template <class V, typename W, typename X, int G>
void dot_float_groups(const DotFloat& a, int group) {
  int64_t row = 0;
  for (; row + V::kFloatRows <= a.rows; row += V::kFloatRows) {
    dot_float_rows<V, W, X, V::kFloatRows, G>(a, group, row);
  }
  for (; row + 2 <= a.rows; row += 2) dot_float_rows<V, W, X, 2, G>(a, group, row);
  for (; row < a.rows; ++row) dot_float_rows<V, W, X, 1, G>(a, group, row);
}

template <class V, typename W, typename X>
void dot_float(const DotFloat& a) {
  if (V::kGroups == 2 && a.groups == 2) {
    dot_float_groups<V, W, X, V::kGroups>(a, 0);
  } else {
    for (int group = 0; group < a.groups; ++group) dot_float_groups<V, W, X, 1>(a, group);
  }
}

// The int8 dot products of a set; those of sets whose registers want other shapes are specializations.
template <class V>
struct Dots {
  template <Family family, Width width>
  static void shared(const DotQ8& a) {
    dot_q8<V, family, width>(a);
  }
  template <class Format, Family family, Width width>
  static void packed(const DotPacked& a) {
    dot_packed<V, Format, family, width>(a);
  }
  template <class Format>
  static constexpr int kMostPackedRows = kPackedRows<V, Format>;
};

template <class V, class Format, Family family, Width width>
void set_packed(LinearKernels& table, DType dtype) {
  table.dot_packed[static_cast<size_t>(dtype)] = Dots<V>::template packed<Format, family, width>;
  table.packed_rows[static_cast<size_t>(dtype)] = Dots<V>::template kMostPackedRows<Format>;
}

template <class V>
LinearKernels make_table(Isa isa) {
  LinearKernels table{};
  table.isa = isa;
  fill_unpack(table);
  const auto dots = [&]<Family family, Width width>() {
    table.dot_q8[static_cast<size_t>(family)][static_cast<size_t>(width)] =
        Dots<V>::template shared<family, width>;
  };
  dots.template operator()<Family::kOffset32, Width::kFour>();
  dots.template operator()<Family::kOffset32, Width::kFive>();
  dots.template operator()<Family::kOffset32, Width::kEight>();
  dots.template operator()<Family::kMinimum32, Width::kFour>();
  dots.template operator()<Family::kMinimum32, Width::kFive>();
  dots.template operator()<Family::kOffset16, Width::kFour>();
  dots.template operator()<Family::kOffset16, Width::kSix>();
  dots.template operator()<Family::kMinimum16, Width::kFour>();
  set_packed<V, Nibbles32, Family::kOffset32, Width::kFour>(table, DType::kQ4_0);
  set_packed<V, Nibbles32, Family::kMinimum32, Width::kFour>(table, DType::kQ4_1);
  set_packed<V, Five32, Family::kOffset32, Width::kFive>(table, DType::kQ5_0);
  set_packed<V, Five32, Family::kMinimum32, Width::kFive>(table, DType::kQ5_1);
  set_packed<V, Bytes32, Family::kOffset32, Width::kEight>(table, DType::kQ8_0);
  set_packed<V, TwoK, Family::kMinimum16, Width::kFour>(table, DType::kQ2_K);
  set_packed<V, ThreeK, Family::kOffset16, Width::kFour>(table, DType::kQ3_K);
  set_packed<V, FourK, Family::kMinimum32, Width::kFour>(table, DType::kQ4_K);
  set_packed<V, FiveK, Family::kMinimum32, Width::kFive>(table, DType::kQ5_K);
  set_packed<V, SixK, Family::kOffset16, Width::kSix>(table, DType::kQ6_K);
  set_packed<V, Table32<kTableNl>, Family::kOffset32, Width::kEight>(table, DType::kIQ4_NL);
  set_packed<V, Table32<kTableNl>, Family::kOffset32, Width::kEight>(table, DType::kIQ4_XS);
  set_packed<V, Table32<kTableFp4>, Family::kOffset32, Width::kFive>(table, DType::kMXFP4);
  table.dot_f32 = dot_float<V, float, float>;
  table.dot_f16 = dot_float<V, Half, float>;
  table.dot_bf16_f32 = dot_float<V, HalfPair, FloatPair>;
  return table;
}
