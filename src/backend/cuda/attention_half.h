// Products of 16 bits (Compute::kBF16 over pages of F16 or BF16): keys and values as they lie, queries and
// weights rounded to their dtype, one mma.m16n8k16 for two steps of TF32 in two parts. Kinds of elements as
// attention_elements.h has them; a step of kDepth is 16 keys.
//
// F16 holds no wide range, so a row of queries is brought to [1, 4) by a power of two, which its scores take
// back: what is 2^-14 of the row's largest or less loses bits, as ops/attention.h says. A weight is at most
// 2^8 or so (scale_of). Rows in shared memory are of kD, with zeros behind their own width: no step asks
// where that ends.
#pragma once

#include "backend/cuda/attention_elements.h"

namespace qiao::cuda {

struct F16Products {
  static constexpr bool kNarrow = true;  // exponents do not reach as far as F32's
  static __device__ uint32_t pack(float2 x) {
    const __half low = __float2half_rn(x.x), high = __float2half_rn(x.y);
    return __half_as_ushort(low) | uint32_t{__half_as_ushort(high)} << 16;
  }
  static __device__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add_f16(d, a, b);
  }
  static __device__ void multiply_async(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool adds) {
    multiply_async_f16(d, a, b, adds);
  }
  template <int kCount>
  static __device__ void multiply_async_of_columns(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b) {
    multiply_async_f16_of_columns(d, a, b);
  }
};
struct Bf16Products {
  static constexpr bool kNarrow = false;
  static __device__ uint32_t pack(float2 x) {
    const __nv_bfloat16 low = __float2bfloat16_rn(x.x), high = __float2bfloat16_rn(x.y);
    return __bfloat16_as_ushort(low) | uint32_t{__bfloat16_as_ushort(high)} << 16;
  }
  static __device__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add_bf16(d, a, b);
  }
  static __device__ void multiply_async(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool adds) {
    multiply_async_bf16(d, a, b, adds);
  }
  template <int kCount>
  static __device__ void multiply_async_of_columns(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b) {
    multiply_async_bf16_of_columns(d, a, b);
  }
};

template <class OfProducts, int kD>
struct RoundedElements {
  using Products = OfProducts;
  using Tile = RoundedElements;  // once they are in shared memory for many rows
  static constexpr RowScales kScales = RowScales::kNone;
  static constexpr int kBytes = 2, kVectors = kD / 8, kVectorsTogether = kVectors;
  static constexpr int kKeyPitch = 2 * kD + 16, kValuePitch = kKeyPitch, kQueryPitch = kKeyPitch;
  static constexpr int kDepth = 16;
  static constexpr int kQueryBytes = 16 * kQueryPitch + 16 * 4;  // rows, then what their scores are times
  static constexpr int kWeightBytes = 2;
  using Weights = uint32_t[4];

  // By a warp: a row of `dim` floats, or of zeros where there is none. What a lane has of it, and that
  // stored.
  struct Query {
    float2 x[kD / 64];
  };
  static __device__ Query take_query(const float* from, int dim) {
    const int lane = threadIdx.x % 32;
    Query query;
#pragma unroll
    for (int i = 0; i < kD / 64; ++i) {
      const int d = 64 * i + 2 * lane;
      query.x[i].x = from != nullptr && d < dim ? from[d] : 0.0f;
      query.x[i].y = from != nullptr && d + 1 < dim ? from[d + 1] : 0.0f;
    }
    return query;
  }
  static __device__ void store_query(unsigned char* queries, int row, const float* from, int dim) {
    put_query(queries, row, take_query(from, dim));
  }
  static __device__ void put_query(unsigned char* queries, int row, Query query) {
    const int lane = threadIdx.x % 32;
    float2(&x)[kD / 64] = query.x;
    float most = 0;
#pragma unroll
    for (int i = 0; i < kD / 64; ++i) most = fmaxf(most, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
    float factor = 1;
    if constexpr (Products::kNarrow) {
      const uint32_t exponent = __float_as_uint(warp_max(most)) & 0x7f800000u;
      if (exponent != 0 && exponent != 0x7f800000u) {
        factor = __uint_as_float(min(exponent, 0x7e800000u));
        const float inverse = __uint_as_float(0x7f000000u - __float_as_uint(factor));
#pragma unroll
        for (int i = 0; i < kD / 64; ++i) x[i].x *= inverse, x[i].y *= inverse;
      }
    }
#pragma unroll
    for (int i = 0; i < kD / 64; ++i) {
      *reinterpret_cast<uint32_t*>(queries + row * kQueryPitch + 128 * i + 4 * lane) = Products::pack(x[i]);
    }
    if (lane == 0) reinterpret_cast<float*>(queries + 16 * kQueryPitch)[row] = factor;
  }
  static __device__ float score_factor(const unsigned char* queries, int row) {
    return reinterpret_cast<const float*>(queries + 16 * kQueryPitch)[row];
  }

  // Operand a of step k of 16 rows.
  static __device__ void load_query(const unsigned char* queries, int k, uint32_t (&a)[4]) {
    const int lane = threadIdx.x % 32;
    load_matrices(a, queries + lane % 16 * kQueryPitch + 32 * k + 16 * (lane / 16));
  }
  // Scores of step k towards kTiles × 8 keys.
  template <int kTiles>
  static __device__ void multiply_step(const uint32_t (&a)[4], const unsigned char* rows, int k,
                                       float (&scores)[kTiles][4]) {
    static_assert(kTiles % 2 == 0);
    const int lane = threadIdx.x % 32;
    const unsigned char* at = rows + (lane / 16 * 8 + lane % 8) * kKeyPitch + 32 * k + lane / 8 % 2 * 16;
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t words[4];
      load_matrices(words, at + 8 * n * kKeyPitch);
      const uint32_t b[2][2] = {{words[0], words[1]}, {words[2], words[3]}};
      Products::multiply_add(scores[n], a, b[0]);
      Products::multiply_add(scores[n + 1], a, b[1]);
    }
  }
  template <int kTiles>
  static __device__ void multiply_keys(const unsigned char* queries, const unsigned char* rows, int, bool,
                                       float (&scores)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = 0;
    }
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      uint32_t a[4];
      load_query(queries, k, a);
      multiply_step<kTiles>(a, rows, k, scores);
    }
  }

  static __device__ void store_weights(unsigned char* weights, int pitch, int row, int key, float2 pair) {
    *reinterpret_cast<uint32_t*>(weights + 2 * (row * pitch + key)) = Products::pack(pair);
  }
  static __device__ void load_weights(const unsigned char* weights, int pitch, int key, bool, Weights& out) {
    const int lane = threadIdx.x % 32;
    load_matrices(out, weights + 2 * (lane % 16 * pitch + key) + 16 * (lane / 16));
  }
  // The same of two tiles of weights where they were made.
  static __device__ void take_weights(const float (&left)[4], const float (&right)[4], Weights& out) {
    out[0] = Products::pack(make_float2(left[0], left[1]));
    out[1] = Products::pack(make_float2(left[2], left[3]));
    out[2] = Products::pack(make_float2(right[0], right[1]));
    out[3] = Products::pack(make_float2(right[2], right[3]));
  }
  template <int kTiles>
  static __device__ void add_values(const unsigned char* rows, int k, int first, int, bool,
                                    const Weights& weights, float (*out)[4]) {
    static_assert(kTiles == 1 || kTiles % 2 == 0);
    const int lane = threadIdx.x % 32;
    if constexpr (kTiles == 1) {
      uint32_t b[2];
      load_matrices_transposed(b, rows + (16 * k + lane % 16) * kValuePitch + 16 * first);
      Products::multiply_add(out[0], weights, b);
      return;
    }
    const unsigned char* at =
        rows + (16 * k + lane / 8 % 2 * 8 + lane % 8) * kValuePitch + 16 * (first + lane / 16);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t words[4];
      load_matrices_transposed(words, at + 16 * n);
      const uint32_t b[2][2] = {{words[0], words[1]}, {words[2], words[3]}};
      Products::multiply_add(out[n], weights, b[0]);
      Products::multiply_add(out[n + 1], weights, b[1]);
    }
  }
  template <int kTiles>
  static __device__ int column(int n, int c) {
    return 8 * n + 2 * static_cast<int>(threadIdx.x % 4) + c;
  }
};
template <int kD>
using RoundedF16 = RoundedElements<F16Products, kD>;
template <int kD>
using RoundedBf16 = RoundedElements<Bf16Products, kD>;

}  // namespace qiao::cuda
