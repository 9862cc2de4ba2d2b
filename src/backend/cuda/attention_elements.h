// How a warp reads keys and values of each dtype from shared memory as operands of the tensor cores.
//
// Products of F32 numbers are made of TF32 ones, which have 11 bits and F32's exponent: x = high + low, high
// rounded to nearest, low cut off: together they miss x by less than 2^-23 |x|. F16 and BF16 fit in one part,
// so do Q8_0's numbers without their scales: q·k and p·v cost two products; F32 takes two parts, and three
// products (low × low, below 2^-22 of the product, is left out). A part of 16 bits each (BF16: three for F32)
// would cost as much or more, and F16's exponents do not hold a small p. The cost beside products of BF16
// that need not be split: 4 times (TF32 has half their rate, and there are two).
//
// The eight k of a product are dealt to lanes in pairs: slot j is element 2 j, slot j + 4 is 2 j + 1. So what
// ldmatrix gives, and an accumulator (as the weights p), are operands as they are.
#pragma once

#include "backend/cuda/kernel.h"

namespace qiao::cuda {

// The first part of a float; what is left of it is the second (the tensor cores read its high bits).
__device__ inline uint32_t tf32_high(float x) { return (__float_as_uint(x) + 0x1000u) & 0xffffe000u; }
// A NaN's high part may not be one, but its low part is.
__device__ inline void split(float x, uint32_t* high, uint32_t* low) {
  *high = tf32_high(x);
  *low = __float_as_uint(x - __uint_as_float(*high));
}

// d += a b, of 16 rows and kTiles × 8 columns, 8 deep, each operand in its parts; what is small is added to
// `low`.
template <int kTiles, int kParts>
__device__ inline void multiply_parts(float (*d)[4], float (*low)[4], const uint32_t (&a)[2][4],
                                      const uint32_t (&b)[kParts][kTiles][2]) {
  multiply_add_tf32<kTiles>(d, a[0], b[0]);
  multiply_add_tf32<kTiles>(low, a[1], b[0]);
  if constexpr (kParts == 2) multiply_add_tf32<kTiles>(low, a[0], b[1]);
}

// Of 16 rows of kPitch floats in shared memory, columns [8 k, 8 k + 8): operand a in its parts.
template <int kPitch>
__device__ inline void load_a(const float* rows, int k, uint32_t (&a)[2][4]) {
  const int lane = threadIdx.x % 32;
  const float* at = rows + lane / 4 * kPitch + 8 * k + 2 * (lane % 4);
  const float2 upper = *reinterpret_cast<const float2*>(at);
  const float2 lower = *reinterpret_cast<const float2*>(at + 8 * kPitch);
  split(upper.x, &a[0][0], &a[1][0]);
  split(lower.x, &a[0][1], &a[1][1]);
  split(upper.y, &a[0][2], &a[1][2]);
  split(lower.y, &a[0][3], &a[1][3]);
}
// Of rows that were split before: one part. `lower`: whether there are any of the last eight; else they are
// zeros.
template <int kPitch>
__device__ inline void load_parts(const float* rows, int k, bool lower, uint32_t (&a)[4]) {
  const int lane = threadIdx.x % 32;
  const float* at = rows + lane / 4 * kPitch + 8 * k + 2 * (lane % 4);
  const uint2 upper = *reinterpret_cast<const uint2*>(at);
  uint2 below = make_uint2(0, 0);
  if (lower) below = *reinterpret_cast<const uint2*>(at + 8 * kPitch);
  a[0] = upper.x, a[1] = below.x, a[2] = upper.y, a[3] = below.y;
}
// An accumulator, times the 8 rows of the next product.
__device__ inline void split_accumulator(const float (&d)[4], uint32_t (&a)[2][4], bool lower = true) {
  split(d[0], &a[0][0], &a[1][0]);
  split(d[1], &a[0][2], &a[1][2]);
  a[0][1] = a[1][1] = a[0][3] = a[1][3] = 0;
  if (!lower) return;
  split(d[2], &a[0][1], &a[1][1]);
  split(d[3], &a[0][3], &a[1][3]);
}

// Scores of 16 rows of split queries, parts of 16 rows of Elements::kQueryPitch floats, towards kTiles × 8
// keys.
template <class Elements, int kTiles>
__device__ inline void multiply_split_keys(const float* queries, const unsigned char* keys, int dim,
                                           bool lower, float (&scores)[kTiles][4]) {
  float low[kTiles][4];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = low[n][i] = 0;
  }
  const int steps = (dim + 7) / 8;
#pragma unroll 2
  for (int k = 0; k < steps; ++k) {
    uint32_t a[2][4], b[Elements::kParts][kTiles][2];
    load_parts<Elements::kQueryPitch>(queries, k, lower, a[0]);
    load_parts<Elements::kQueryPitch>(queries + 16 * Elements::kQueryPitch, k, lower, a[1]);
    Elements::template keys<kTiles>(keys, k, b);
    multiply_parts<kTiles>(scores, low, a, b);
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] += low[n][i];
  }
}
// Adds values, rows [8 k, 8 k + 8), times weights to kTiles tiles of the result from `first` on.
template <class Elements, int kTiles>
__device__ inline void add_split_values(const unsigned char* values, int k, int first, int dim, bool lower,
                                        const float (&weights)[4], float (*out)[4]) {
  constexpr int kGroup = kTiles < 4 ? kTiles : 4;  // are read together
  uint32_t a[2][4];
  split_accumulator(weights, a, lower);
#pragma unroll
  for (int n = 0; n < kTiles; n += kGroup) {
    if (8 * (first + n) >= dim) break;
    uint32_t b[Elements::kParts][kGroup][2];
    Elements::template values<kGroup>(values, k, first + n, b);
    multiply_parts<kGroup>(out + n, out + n, a, b);
  }
}

// What a row's numbers are times: nothing; a scale for each 32, which lie behind its numbers in pages too; or
// one, which lies apart there. In shared memory scales are behind the row, at byte kD.
enum class RowScales { kNone, kBlocks, kOne };

// What is the same for all kinds of F32 products: queries in both parts, weights as floats.
template <int kPitch>
struct SplitOperands {
  static constexpr RowScales kScales = RowScales::kNone;
  static constexpr int kDepth = 8;            // keys of a step
  static constexpr int kVectorsTogether = 1;  // of a row in shared memory, the last ones zeros
  static constexpr int kQueryPitch = kPitch;
  static constexpr int kQueryBytes = 2 * 16 * kPitch * 4;  // of 16 rows
  static constexpr int kWeightBytes = 4;                   // of one
  using Weights = float[4];                                // of a step: a lane's

  // By a warp: a row of `dim` floats, or of zeros where there is none.
  static __device__ void store_query(unsigned char* queries, int row, const float* from, int dim) {
    const int width = (dim + 7) / 8 * 8;
    float* at = reinterpret_cast<float*>(queries) + row * kPitch;
#pragma unroll 4
    for (int d = threadIdx.x % 32; d < width; d += 32) {
      uint32_t high, low;
      split(from != nullptr && d < dim ? from[d] : 0.0f, &high, &low);
      at[d] = __uint_as_float(high);
      at[16 * kPitch + d] = __uint_as_float(low);
    }
  }
  // What a row's scores are times yet.
  static __device__ float score_factor(const unsigned char*, int) { return 1; }
  // Rows of `pitch` weights in shared memory; two neighbours from `key` on.
  static __device__ void store_weights(unsigned char* weights, int pitch, int row, int key, float2 pair) {
    *reinterpret_cast<float2*>(reinterpret_cast<float*>(weights) + row * pitch + key) = pair;
  }
  static __device__ void load_weights(const unsigned char* weights, int pitch, int key, bool lower,
                                      Weights& out) {
    const int lane = threadIdx.x % 32;
    const float* at = reinterpret_cast<const float*>(weights) + lane / 4 * pitch + key + 2 * (lane % 4);
    const float2 upper = *reinterpret_cast<const float2*>(at);
    float2 below = make_float2(0, 0);
    if (lower) below = *reinterpret_cast<const float2*>(at + 8 * pitch);
    out[0] = upper.x, out[1] = upper.y, out[2] = below.x, out[3] = below.y;
  }
};

// A kind of element: kVectors = vectors of 16 bytes of a row of kD, kBytes of an element; pitches of a row in
// shared memory, in bytes; kScales; how queries and weights are kept (SplitOperands); and for each warp
//   multiply_keys   scores of 16 queries towards kTiles × 8 keys
//   add_values      kDepth values times their weights, added to kTiles tiles of 8 columns
//   column          of a lane's result c of tile n of kTiles, tile 0 being the first
// which are made of
//   keys     of kTiles × 8 rows, columns [8 k, 8 k + 8)      as b[part][tile]
//   values   of rows [8 k, 8 k + 8), columns of kTiles tiles of 8, from tile n on, as b[part][tile]

template <class Half, int kD>
struct HalfElements : SplitOperands<kD + 8> {
  static constexpr int kParts = 1, kBytes = 2, kVectors = kD / 8;
  static constexpr int kKeyPitch = 2 * kD + 16, kValuePitch = kKeyPitch;

  static __device__ void widen(uint32_t word, uint32_t (&b)[2]) {
    b[0] = __float_as_uint(Half::low(word));
    b[1] = __float_as_uint(Half::high(word));
  }
  template <int kTiles>
  static __device__ void keys(const unsigned char* rows, int k, uint32_t (&b)[1][kTiles][2]) {
    uint32_t words[kTiles];
    load_matrices(words, rows + threadIdx.x % (8 * kTiles) * kKeyPitch + 16 * k);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) widen(words[n], b[0][n]);
  }
  template <int kTiles>
  static __device__ void values(const unsigned char* rows, int k, int n, uint32_t (&b)[1][kTiles][2]) {
    uint32_t words[kTiles];
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(words, rows + (8 * k + lane % 8) * kValuePitch + 16 * (n + lane / 8 % kTiles));
#pragma unroll
    for (int i = 0; i < kTiles; ++i) widen(words[i], b[0][i]);
  }

  template <int kTiles>
  static __device__ void multiply_keys(const unsigned char* queries, const unsigned char* rows, int dim,
                                       bool lower, float (&scores)[kTiles][4]) {
    multiply_split_keys<HalfElements>(reinterpret_cast<const float*>(queries), rows, dim, lower, scores);
  }
  template <int kTiles>
  static __device__ void add_values(const unsigned char* rows, int k, int first, int dim, bool lower,
                                    const float (&weights)[4], float (*out)[4]) {
    add_split_values<HalfElements, kTiles>(rows, k, first, dim, lower, weights, out);
  }
  template <int kTiles>
  static __device__ int column(int n, int c) {
    return 8 * n + 2 * static_cast<int>(threadIdx.x % 4) + c;
  }
};
struct F16Half {
  static __device__ float low(uint32_t word) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)));
  }
  static __device__ float high(uint32_t word) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
  }
};
struct Bf16Half {
  static __device__ float low(uint32_t word) { return __uint_as_float(word << 16); }
  static __device__ float high(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
};
template <int kD>
using F16Elements = HalfElements<F16Half, kD>;
template <int kD>
using Bf16Elements = HalfElements<Bf16Half, kD>;

// Pitches: keys are read in pairs, values singly; each warp's reads lie in 32 banks.
template <int kD>
struct F32Elements : SplitOperands<kD + 8> {
  static constexpr int kParts = 2, kBytes = 4, kVectors = kD / 4;
  static constexpr int kKeyPitch = 4 * kD + 32, kValuePitch = 4 * kD + 16;

  template <int kTiles>
  static __device__ void keys(const unsigned char* rows, int k, uint32_t (&b)[2][kTiles][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 pair = *reinterpret_cast<const float2*>(rows + (8 * n + lane / 4) * kKeyPitch +
                                                           4 * (8 * k + 2 * (lane % 4)));
      split(pair.x, &b[0][n][0], &b[1][n][0]);
      split(pair.y, &b[0][n][1], &b[1][n][1]);
    }
  }
  template <int kTiles, int kPitch = kValuePitch>
  static __device__ void values(const unsigned char* rows, int k, int n, uint32_t (&b)[2][kTiles][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float x = *reinterpret_cast<const float*>(rows + (8 * k + 2 * (lane % 4) + row) * kPitch +
                                                        4 * (8 * (n + i) + lane / 4));
        split(x, &b[0][i][row], &b[1][i][row]);
      }
    }
  }

  template <int kTiles>
  static __device__ void multiply_keys(const unsigned char* queries, const unsigned char* rows, int dim,
                                       bool lower, float (&scores)[kTiles][4]) {
    multiply_split_keys<F32Elements>(reinterpret_cast<const float*>(queries), rows, dim, lower, scores);
  }
  template <int kTiles>
  static __device__ void add_values(const unsigned char* rows, int k, int first, int dim, bool lower,
                                    const float (&weights)[4], float (*out)[4]) {
    add_split_values<F32Elements, kTiles>(rows, k, first, dim, lower, weights, out);
  }
  template <int kTiles>
  static __device__ int column(int n, int c) {
    return 8 * n + 2 * static_cast<int>(threadIdx.x % 4) + c;
  }
};

// Numbers, and from byte kD on the scales. A number is exact in TF32 by itself, so both products are of
// numbers, two for each one: a block's part of a score is multiplied by its scale, and a weight by its
// value's before it is split. (A q of 2^120 and more may overflow where the scale would have brought it
// back.) A lane reads four numbers at once: of a key, those of two steps of the sum over d; of a value, its
// four tiles' columns, which so are neighbours.
template <int kD>
struct Q8Elements : SplitOperands<kD + 16> {
  using Operands = SplitOperands<kD + 16>;
  static constexpr RowScales kScales = RowScales::kBlocks;
  static constexpr int kBytes = 1, kVectors = kD / 16 + 1;
  static constexpr int kKeyPitch = kD + 16, kValuePitch = kKeyPitch;

  static __device__ float scale(const unsigned char* row, int column) {
    return __half2float(
        __ushort_as_half(*reinterpret_cast<const unsigned short*>(row + kD + 2 * (column / 32))));
  }
  // 2^23 + 128 + n in a float's bits, less what is not n.
  static __device__ uint32_t number(uint32_t word, int i) {
    const uint32_t bits = __byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7440u + static_cast<unsigned>(i));
    return __float_as_uint(__uint_as_float(bits) - 8388736.0f);
  }
  static __device__ void load_query(const float* rows, int d, bool lower, uint32_t (&a)[2][4]) {
    const int lane = threadIdx.x % 32;
    const float* at = rows + lane / 4 * Operands::kQueryPitch + d + 4 * (lane % 4);
    const uint4 upper = *reinterpret_cast<const uint4*>(at);
    uint4 below = make_uint4(0, 0, 0, 0);
    if (lower) below = *reinterpret_cast<const uint4*>(at + 8 * Operands::kQueryPitch);
    a[0][0] = upper.x, a[0][1] = below.x, a[0][2] = upper.y, a[0][3] = below.y;
    a[1][0] = upper.z, a[1][1] = below.z, a[1][2] = upper.w, a[1][3] = below.w;
  }

  template <int kTiles>
  static __device__ void multiply_keys(const unsigned char* query_bytes, const unsigned char* rows, int dim,
                                       bool lower, float (&scores)[kTiles][4]) {
    const auto* queries = reinterpret_cast<const float*>(query_bytes);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = 0;
    }
    for (int block = 0; block < dim; block += 32) {
      float sums[kTiles][4];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] = 0;
      }
#pragma unroll
      for (int d = block; d < block + 32; d += 16) {
        uint32_t a[2][2][4], b[2][kTiles][2];  // of step [0] and [1]
        load_query(queries, d, lower, a[0]);
        load_query(queries + 16 * Operands::kQueryPitch, d, lower, a[1]);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const uint32_t word =
              *reinterpret_cast<const uint32_t*>(rows + (8 * n + lane / 4) * kKeyPitch + d + 4 * (lane % 4));
#pragma unroll
          for (int i = 0; i < 4; ++i) b[i / 2][n][i % 2] = number(word, i);
        }
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          multiply_add_tf32<kTiles>(sums, a[0][step], b[step]);
          multiply_add_tf32<kTiles>(sums, a[1][step], b[step]);
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float by = scale(rows + (8 * n + 2 * (lane % 4) + c) * kKeyPitch, block);
          scores[n][c] = fmaf(sums[n][c], by, scores[n][c]);
          scores[n][2 + c] = fmaf(sums[n][2 + c], by, scores[n][2 + c]);
        }
      }
    }
  }

  template <int kTiles>
  static constexpr int kGroup = kTiles < 4 ? kTiles : 4;  // tiles, all of one block's scale

  template <int kTiles>
  static __device__ void add_values(const unsigned char* rows, int k, int first, int dim, bool lower,
                                    const float (&weights)[4], float (*out)[4]) {
    const int lane = threadIdx.x % 32;
    const unsigned char* row = rows + (8 * k + 2 * (lane % 4)) * kValuePitch;
#pragma unroll
    for (int n = 0; n < kTiles; n += kGroup<kTiles>) {
      const int from = 8 * (first + n);
      if (from >= dim) break;
      uint32_t a[2][4], b[kGroup<kTiles>][2];
      float scaled[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const unsigned char* value = row + i * kValuePitch;
        const float by = scale(value, from);
        scaled[i] = weights[i] * by, scaled[2 + i] = weights[2 + i] * by;
        uint32_t word;
        if constexpr (kGroup<kTiles> == 4) {
          word = *reinterpret_cast<const uint32_t*>(value + from + 4 * (lane / 4));
        } else if constexpr (kGroup<kTiles> == 2) {
          word = *reinterpret_cast<const unsigned short*>(value + from + 2 * (lane / 4));
        } else {
          word = value[from + lane / 4];
        }
#pragma unroll
        for (int tile = 0; tile < kGroup<kTiles>; ++tile) b[tile][i] = number(word, tile);
      }
      split_accumulator(scaled, a, lower);
      multiply_add_tf32<kGroup<kTiles>>(out + n, a[0], b);
      multiply_add_tf32<kGroup<kTiles>>(out + n, a[1], b);
    }
  }
  template <int kTiles>
  static __device__ int column(int n, int c) {
    constexpr int kTogether = kGroup<kTiles>;
    return n / kTogether * kTogether * 8 + kTogether * (2 * static_cast<int>(threadIdx.x % 4) + c) +
           n % kTogether;
  }
};

}  // namespace qiao::cuda
