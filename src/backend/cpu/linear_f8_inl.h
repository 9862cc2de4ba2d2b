// Products of a few rows of x with F8_128, for a set V of vector operations that turns E4M3 into F32 in
// registers. Included inside the anonymous namespace of linear_<isa>.cc, after V.
//
// Plan: a code's bits, put where F16 has them, are its number times 2^-8, numbers below 2^-6 too; from there
// to F32 is one instruction. Sums of such numbers have the bits of sums of the numbers, times 2^-8: what they
// add up are multiples of 2^-26 below 2^17, far from where F32 ends. Only the codes of NaN become finite so:
// they are looked for, and their rows' sums made NaN after. A block's sum starts at zero, so those of two
// blocks are walked side by side where one row of x leaves the multipliers waiting for their last sum.
//
// The limit is reading memory: with each 64 bytes those of the next chunk are asked for (without, 13 GB/s a
// core instead of 30: up to four places are read at once). AVX-512 makes 64 codes numbers with 14 operations;
// one row of x and 24000 x 4096 weights read 50 GB/s on two cores of Zen 5, where BF16 reads 53. A core alone
// reads 30 (BF16 42), and 15 with AVX2, whose operations are the limit.

inline constexpr float kF8Unit = 256.0f;

// What the 16 rows of a group have a NaN among `elements` codes each, bit by bit.
inline uint32_t f8_nan_rows(const std::byte* chunk, int64_t elements) {
  const uint8_t* codes = bytes_of(chunk);
  uint32_t rows = 0;
  for (int64_t i = 0; i < elements * 16; ++i) {
    if ((codes[i] & 127) == 127) rows |= 1u << (i / 4 % 16);
  }
  return rows;
}

// With `values` codes are multiplied as what they stand for, number times scale, and M rows by G groups are
// M x G sums for all of k; without, B blocks have sums of their own.
template <class V, bool values, int M, int G, int B>
inline __attribute__((always_inline)) void dot_f8_blocks(const DotF8& a, int group, int64_t row,
                                                         int64_t block, typename V::Codes (&most)[G]) {
  static_assert(!values || B == 1);
  using F = typename V::F;
  const F unit = V::splat(&kF8Unit);
  float* sums = a.sums + row * kPair * 16 + group * 16;
  const uint8_t *codes[G], *ahead[G];
  const float* scales[G];
  for (int g = 0; g < G; ++g) {
    const auto at = static_cast<size_t>(group) + static_cast<size_t>(g);
    codes[g] = bytes_of(a.chunks[at]) + block * kF8Block * 16;
    scales[g] = f8_scales(a.chunks[at], a.elements) + block * 16;
    ahead[g] = bytes_of(row == 0 ? a.ahead[at] : a.chunks[at]) + block * kF8Block * 16;
  }
  const float* x = a.x + row * a.x_stride + block * kF8Block;
  F sum[M][G * B];
  if constexpr (values) {
    load_sums<V, M, G>(sums, sum);
  } else {
    for (int m = 0; m < M; ++m) {
      for (int i = 0; i < G * B; ++i) sum[m][i] = F{};
    }
  }
  for (int64_t k = 0; k < kF8Block; k += 4) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const int64_t at = (b * kF8Block + k) * 16;
        __builtin_prefetch(ahead[g] + at, 0, 3);
        F w[4];
        V::f8_numbers(codes[g] + at, w, most[g]);
        if constexpr (values) {
          const F scale = V::load(scales[g]);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) w[i] = V::mul(V::mul(w[i], unit), scale);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) {
            F& to = sum[m][b * G + g];
            to = V::fma(w[i], V::splat(x + m * a.x_stride + b * kF8Block + k + i), to);
          }
        }
      }
    }
  }
  if constexpr (values) {
    store_sums<V, M, G>(sums, sum);
  } else {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const F scale = V::load(scales[g] + b * 16);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const float* x_scale = a.x_scales + (row + m) * a.x_scales_stride + block + b;
          float* to = sums + m * kPair * 16 + g * 16;
          V::store(to,
                   V::fma(V::mul(sum[m][b * G + g], unit), V::mul(scale, V::splat(x_scale)), V::load(to)));
        }
      }
    }
  }
}

template <class V, bool values, int M, int G>
void dot_f8_rows(const DotF8& a, int group, int64_t row) {
  constexpr int kBlocks = values || M > 1 ? 1 : V::kF8Blocks;
  const int64_t blocks = a.elements / kF8Block;
  typename V::Codes most[G] = {};
  int64_t block = 0;
  for (; block + kBlocks <= blocks; block += kBlocks) {
    dot_f8_blocks<V, values, M, G, kBlocks>(a, group, row, block, most);
  }
  for (; block < blocks; ++block) dot_f8_blocks<V, values, M, G, 1>(a, group, row, block, most);
  for (int g = 0; g < G; ++g) {
    if (!V::f8_nan(most[g])) continue;
    const uint32_t rows =
        f8_nan_rows(a.chunks[static_cast<size_t>(group) + static_cast<size_t>(g)], a.elements);
    for (int i = 0; i < M * 16; ++i) {
      const int m = i / 16, r = i % 16;
      if ((rows >> r & 1u) != 0) a.sums[(row + m) * kPair * 16 + (group + g) * 16 + r] = __builtin_nanf("");
    }
  }
}

template <class V, bool values, int G>
void dot_f8_groups(const DotF8& a, int group) {
  int64_t row = 0;
  for (; row + 4 <= a.rows; row += 4) dot_f8_rows<V, values, 4, G>(a, group, row);
  if (row + 3 == a.rows) return dot_f8_rows<V, values, 3, G>(a, group, row);
  if (row + 2 == a.rows) return dot_f8_rows<V, values, 2, G>(a, group, row);
  if (row + 1 == a.rows) return dot_f8_rows<V, values, 1, G>(a, group, row);
}

template <class V, bool values>
void dot_f8(const DotF8& a) {
  if (V::kGroups == 2 && a.groups == 2) return dot_f8_groups<V, values, V::kGroups>(a, 0);
  for (int group = 0; group < a.groups; ++group) dot_f8_groups<V, values, 1>(a, group);
}

// f8_to_f32 in registers; what has a NaN is left to it.
template <class V>
void f8_to_f32_by(const std::byte* codes, const float* scales, int64_t elements, float* out) {
  const typename V::F unit = V::splat(&kF8Unit);
  typename V::Codes most = {};
  for (int64_t k = 0; k < elements; k += 4) {
    __builtin_prefetch(codes + (k + 2 * kF8Block) * 16, 0, 3);
    typename V::F w[4];
    V::f8_numbers(bytes_of(codes) + k * 16, w, most);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      typename V::F value = V::mul(w[i], unit);
      if (scales != nullptr) value = V::mul(value, V::load(scales + k / kF8Block * 16));
      V::store(out + (k + i) * 16, value);
    }
  }
  if (V::f8_nan(most)) f8_to_f32(codes, scales, elements, out);
}

template <class V>
void fill_f8(LinearKernels& table) {
  table.dot_f8 = dot_f8<V, false>;
  table.dot_f8_values = dot_f8<V, true>;
  table.f8_rows = 16;  // both measured on Zen 5
  table.f8_value_rows = 8;
  table.f8_to_f32 = f8_to_f32_by<V>;
}
