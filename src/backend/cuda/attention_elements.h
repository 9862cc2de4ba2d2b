// How a warp reads keys and values of each dtype from shared memory as operands of the tensor cores.
//
// Products of F32 numbers are made of TF32 ones, which have 11 bits and F32's exponent: x = high + low, high
// rounded to nearest, low cut off: together they miss x by less than 2^-23 |x|. F16 and BF16 fit in one part,
// so q·k and p·v cost two products; F32 and Q8_0 take two parts, and three products (low × low, below 2^-22
// of the product, is left out). A part of 16 bits each (BF16: three for F32) would cost as much or more, and
// F16's exponents do not hold a small p. The cost beside products of BF16 that need not be split: 4 times
// (TF32 has half their rate, and there are two).
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
__device__ inline void split_accumulator(const float (&d)[4], uint32_t (&a)[2][4]) {
  split(d[0], &a[0][0], &a[1][0]);
  split(d[2], &a[0][1], &a[1][1]);
  split(d[1], &a[0][2], &a[1][2]);
  split(d[3], &a[0][3], &a[1][3]);
}

// A kind of element: kParts, kVectors = vectors of 16 bytes of a row of kD, kBytes of an element; pitches of
// a row in shared memory, in bytes; and for each warp
//   keys     of kTiles × 8 rows, columns [8 k, 8 k + 8)      as b[part][tile]
//   values   of rows [8 k, 8 k + 8), columns of kTiles tiles of 8, from tile n on, as b[part][tile]

template <class Half, int kD>
struct HalfElements {
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
struct F32Elements {
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
};

// Numbers, and from byte kD on the scales.
template <int kD>
struct Q8Elements {
  static constexpr int kParts = 2, kBytes = 1, kVectors = kD / 16 + 1;
  static constexpr int kKeyPitch = kD + 16, kValuePitch = kKeyPitch;

  static __device__ float number(const unsigned char* row, int column) {
    const auto scale = *reinterpret_cast<const unsigned short*>(row + kD + 2 * (column / 32));
    return __half2float(__ushort_as_half(scale)) * static_cast<float>(static_cast<signed char>(row[column]));
  }
  template <int kTiles>
  static __device__ void keys(const unsigned char* rows, int k, uint32_t (&b)[2][kTiles][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const unsigned char* row = rows + (8 * n + lane / 4) * kKeyPitch;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        split(number(row, 8 * k + 2 * (lane % 4) + i), &b[0][n][i], &b[1][n][i]);
      }
    }
  }
  template <int kTiles>
  static __device__ void values(const unsigned char* rows, int k, int n, uint32_t (&b)[2][kTiles][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float x = number(rows + (8 * k + 2 * (lane % 4) + row) * kValuePitch, 8 * (n + i) + lane / 4);
        split(x, &b[0][i][row], &b[1][i][row]);
      }
    }
  }
};

}  // namespace qiao::cuda
