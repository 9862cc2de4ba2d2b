// Numbers of E4M3 with a scale a row, a power of two (KvWrite's rule): so an element is exact in TF32 and in
// BF16, and is multiplied as such. Kinds of elements as attention_elements.h has them, half of BF16's bytes.
//   F8Elements  (kF32) two products of TF32 for each one, as Q8_0; a key's scale is its score's, a value's
//   its
//               weight's.
//   RoundedF8   (kBF16) the very products of BF16 pages that hold the same numbers. With few rows, whose
//               every number one warp takes once, they are unpacked in registers; with many
//               (attention_half_warp.h, attention_wgmma.h) once for all
//               warps.
// A number costs two to three instructions to unpack, with few rows one part in two of what the integer units
// do in the time that HBM takes for it: the memory stays the limit.
#pragma once

#include "backend/cuda/attention_half.h"

namespace qiao::cuda {

__device__ inline float f8_row_scale(const unsigned char* row, int at) {
  return *reinterpret_cast<const float*>(row + at);
}

template <int kD>
struct F8Elements : SplitOperands<kD + 8> {
  static constexpr RowScales kScales = RowScales::kOne;
  static constexpr int kParts = 1, kBytes = 1, kVectors = kD / 16;
  static constexpr int kKeyPitch = kD + 16, kValuePitch = kKeyPitch;

  template <int kTiles>
  static __device__ void keys(const unsigned char* rows, int k, uint32_t (&b)[1][kTiles][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const unsigned char* at = rows + (8 * n + lane / 4) * kKeyPitch + 8 * k + 2 * (lane % 4);
      uint32_t pair, none;
      unpack_e4m3(*reinterpret_cast<const unsigned short*>(at), pair, none);
      b[0][n][0] = __float_as_uint(F16Half::low(pair)), b[0][n][1] = __float_as_uint(F16Half::high(pair));
    }
  }
  template <int kTiles>
  static __device__ void values(const unsigned char* rows, int k, int n, uint32_t (&b)[1][kTiles][2]) {
    const int lane = threadIdx.x % 32;
    const unsigned char* at = rows + (8 * k + 2 * (lane % 4)) * kValuePitch + 8 * n + lane / 4;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      b[0][i][0] = __float_as_uint(float_of_e4m3(at[8 * i]));
      b[0][i][1] = __float_as_uint(float_of_e4m3(at[8 * i + kValuePitch]));
    }
  }

  template <int kTiles>
  static __device__ void multiply_keys(const unsigned char* queries, const unsigned char* rows, int dim,
                                       bool lower, float (&scores)[kTiles][4]) {
    multiply_split_keys<F8Elements>(reinterpret_cast<const float*>(queries), rows, dim, lower, scores);
    const unsigned char* row = rows + 2 * (threadIdx.x % 4) * kKeyPitch;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float by = f8_row_scale(row + (8 * n + c) * kKeyPitch, kD);
        scores[n][c] *= by, scores[n][2 + c] *= by;
      }
    }
  }
  template <int kTiles>
  static __device__ void add_values(const unsigned char* rows, int k, int first, int dim, bool lower,
                                    const float (&weights)[4], float (*out)[4]) {
    const unsigned char* row = rows + (8 * k + 2 * (threadIdx.x % 4)) * kValuePitch;
    const float left = f8_row_scale(row, kD), right = f8_row_scale(row + kValuePitch, kD);
    const float scaled[4] = {weights[0] * left, weights[1] * right, weights[2] * left, weights[3] * right};
    add_split_values<F8Elements, kTiles>(rows, k, first, dim, lower, scaled, out);
  }
  template <int kTiles>
  static __device__ int column(int n, int c) {
    return 8 * n + 2 * static_cast<int>(threadIdx.x % 4) + c;
  }
};

// Four numbers, as pairs of BF16: the even ones and the odd ones; each times its part of `scales`.
__device__ inline void unpack_f8(uint32_t four, uint32_t scales, uint32_t& even, uint32_t& odd) {
  // E4M3's exponent and fraction in their places of BF16: less by 2^120, the smallest below what is normal.
  const uint32_t two_to_120 = 0x7b807b80u;
  const uint32_t low = (four & 0x007f007fu) << 4 | (four & 0x00800080u) << 8;
  const uint32_t high = (four & 0x7f007f00u) >> 4 | (four & 0x80008000u);
  even = multiply_bf16(multiply_bf16(low, two_to_120), scales);
  odd = multiply_bf16(multiply_bf16(high, two_to_120), scales);
}
// Two scales as BF16, in which a power of two is exact.
__device__ inline uint32_t scale_pair(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}

// A word of a key is d = 4 j to 4 j + 3 of a step of 16, lane j % 4's: its even numbers are slots 2 j and 2 j
// + 1 of the product, its odd ones 2 j + 8 and 2 j + 9. Queries, and keys that are unpacked, lie in that
// order.
template <int kD>
struct RoundedF8 : RoundedElements<Bf16Products, kD> {
  using Tile = RoundedElements<Bf16Products, kD>;
  using typename Tile::Weights;
  static constexpr RowScales kScales = RowScales::kOne;
  static constexpr int kBytes = 1, kVectors = kD / 16, kVectorsTogether = kVectors;
  static constexpr int kKeyPitch = kD + 16, kValuePitch = kKeyPitch;

  struct Query {
    float x[4];
  };
  static __device__ Query take_query(const float* from, int dim) {
    const int lane = threadIdx.x % 32;
    Query query;
#pragma unroll
    for (int i = 0; i < 4; ++i) query.x[i] = from != nullptr && 4 * lane < dim ? from[4 * lane + i] : 0.0f;
    return query;
  }
  static __device__ void store_query(unsigned char* queries, int row, const float* from, int dim) {
    put_query(queries, row, take_query(from, dim));
  }
  static __device__ void put_query(unsigned char* queries, int row, const Query& query) {
    const int lane = threadIdx.x % 32;
    unsigned char* to = queries + row * Tile::kQueryPitch;
    if (4 * lane < kD) {
      const float(&x)[4] = query.x;
      to += 32 * (lane / 4) + 4 * (lane % 4);
      *reinterpret_cast<uint32_t*>(to) = Bf16Products::pack(make_float2(x[0], x[2]));
      *reinterpret_cast<uint32_t*>(to + 16) = Bf16Products::pack(make_float2(x[1], x[3]));
    }
    if (lane == 0) reinterpret_cast<float*>(queries + 16 * Tile::kQueryPitch)[row] = 1;
  }

  template <int kTiles>
  static __device__ void multiply_keys(const unsigned char* queries, const unsigned char* rows, int, bool,
                                       float (&scores)[kTiles][4]) {
    const int lane = threadIdx.x % 32;
    uint32_t scales[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float scale = f8_row_scale(rows + (8 * n + lane / 4) * kKeyPitch, kD);
      scales[n] = scale_pair(scale, scale);
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = 0;
    }
#pragma unroll 2
    for (int k = 0; k < kD / 16; ++k) {
      uint32_t a[4];
      Tile::load_query(queries, k, a);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        uint32_t b[2];
        unpack_f8(*reinterpret_cast<const uint32_t*>(rows + (8 * n + lane / 4) * kKeyPitch + 16 * k +
                                                     4 * (lane % 4)),
                  scales[n], b[0], b[1]);
        Bf16Products::multiply_add(scores[n], a, b);
      }
    }
  }

  // A lane's columns are neighbours: kTiles of them, one of each tile.
  template <int kTiles>
  static __device__ void add_values(const unsigned char* rows, int k, int first, int, bool,
                                    const Weights& weights, float (*out)[4]) {
    static_assert(kTiles == 1 || kTiles == 2);
    const int lane = threadIdx.x % 32;
    const unsigned char* row = rows + (16 * k + 2 * (lane % 4)) * kValuePitch;
    uint32_t b[2][2];  // [tile]
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned char *upper = row + 8 * half * kValuePitch, *lower = upper + kValuePitch;
      const int at = 8 * first + kTiles * (lane / 4);
      uint32_t four;
      if constexpr (kTiles == 2) {
        four = *reinterpret_cast<const unsigned short*>(upper + at) |
               uint32_t{*reinterpret_cast<const unsigned short*>(lower + at)} << 16;
      } else {
        four = upper[at] | uint32_t{lower[at]} << 16;
      }
      unpack_f8(four, scale_pair(f8_row_scale(upper, kD), f8_row_scale(lower, kD)), b[0][half], b[1][half]);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) Bf16Products::multiply_add(out[tile], weights, b[tile]);
  }
  template <int kTiles>
  static __device__ int column(int n, int c) {
    return kTiles * (2 * static_cast<int>(threadIdx.x % 4) + c) + n;
  }

  // Sixteen numbers of a row, `part` of it, as the same of a row of Tile: its two pieces of 16 bytes.
  static __device__ void unpack_keys(const unsigned char* from, int part, uint4& first, uint4& second) {
    const uint4 four = *reinterpret_cast<const uint4*>(from + 16 * part);
    const float scale = f8_row_scale(from, kD);
    const uint32_t scales = scale_pair(scale, scale);
    unpack_f8(four.x, scales, first.x, second.x);
    unpack_f8(four.y, scales, first.y, second.y);
    unpack_f8(four.z, scales, first.z, second.z);
    unpack_f8(four.w, scales, first.w, second.w);
  }
  static __device__ void unpack_values(const unsigned char* from, int part, uint4& first, uint4& second) {
    const uint4 four = *reinterpret_cast<const uint4*>(from + 16 * part);
    const float scale = f8_row_scale(from, kD);
    const uint32_t scales = scale_pair(scale, scale);
    const auto in_order = [&](uint32_t word, uint32_t& low, uint32_t& high) {
      unpack_f8(__byte_perm(word, 0, 0x3120), scales, low, high);
    };
    in_order(four.x, first.x, first.y);
    in_order(four.y, first.z, first.w);
    in_order(four.z, second.x, second.y);
    in_order(four.w, second.z, second.w);
  }
};

}  // namespace qiao::cuda
