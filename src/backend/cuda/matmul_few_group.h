// A group of 32 columns with few tokens, for matmul_few.h: matmul_mma.h's add_group, to the bit, by as few
// instructions as the bandwidth leaves time for. An integer product begins with the number that makes its
// bits a float's (kMagic), less the format's offset times the sum of x: neither is a step of its own.
#pragma once

#include "backend/cuda/activation_rows.h"
#include "backend/cuda/weight_formats.h"

namespace qiao::cuda {

// 1.5 * 2^23: these bits and an integer below 2^22 added to them are that float plus the integer.
inline constexpr int kMagic = 0x4b400000;
inline constexpr float kMagicFloat = 12582912.0f;

// Which of mma's sums a lane has, and a column's token. With all eight columns:
struct AllColumns {
  static constexpr int kSums = 4;
  __device__ static int of_column(int column) { return column; }
  __device__ static int token(int lane, int i) { return lane % 4 * 2 + i % 2; }
  __device__ static int row(int lane, int i) { return lane / 4 + i / 2 * 8; }
};
// Up to four tokens have the even ones: what follows an integer product is half as much.
struct EvenColumns {
  static constexpr int kSums = 2;
  __device__ static int of_column(int column) { return column / 2; }
  __device__ static int token(int lane, int) { return lane % 4; }
  __device__ static int row(int lane, int i) { return lane / 4 + i * 8; }
};

// What add_few takes with the quants of a token in a group: 16 bytes of formats with halves, else 8.
template <class F>
__device__ inline void store_meta(const ActivationMeta& own, uint8_t* to) {
  const int low = low_sum(own.sums), high = high_sum(own.sums);
  const unsigned scale = __float_as_uint(own.scale);
  if constexpr (F::kHalves) {
    const int factor = F::kOffset == 0 ? 1 : -F::kOffset;
    *reinterpret_cast<uint4*>(to) =
        make_uint4(scale, static_cast<unsigned>(factor * low), static_cast<unsigned>(factor * high), 0);
  } else {
    const unsigned second = F::kMinimum ? __float_as_uint(own.scale * static_cast<float>(low + high))
                                        : static_cast<unsigned>(kMagic - F::kOffset * (low + high));
    *reinterpret_cast<uint2*>(to) = make_uint2(scale, second);
  }
}

// A group of 16 rows, of tile `t`, with the tokens' columns b, added to their sums. `metas`: store_meta's of
// the lane's first token.
template <class L, class F>
__device__ inline void add_few(const uint8_t* t, int group, int lane, const uint32_t (&b)[2],
                               const uint8_t* metas, float (&sums)[L::kSums]) {
  constexpr int kApart = 4 / L::kSums;  // a lane's sums, in mma's
  uint32_t a[4];
  F::quants(t, lane, group, a);
  const GroupScales scales[2] = {F::scales(t, lane / 4, group), F::scales(t, lane / 4 + 8, group)};
  float scale_of_x[2];
  if constexpr (F::kHalves) {
    int of_x[2][2], low[4], high[4], from_low[4], from_high[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 own = tile::four(metas + i / kApart * 16);
      scale_of_x[i] = __uint_as_float(own.x);
      of_x[i][0] = static_cast<int>(own.y), of_x[i][1] = static_cast<int>(own.z);
      from_low[i] = from_low[i + 2] = F::kOffset == 0 ? 0 : of_x[i][0];
      from_high[i] = from_high[i + 2] = F::kOffset == 0 ? 0 : of_x[i][1];
    }
    const uint32_t first[2] = {a[0], a[1]}, rest[2] = {a[2], a[3]};
    multiply_add_s8(low, from_low, first, b[0]);
    multiply_add_s8(high, from_high, rest, b[1]);
#pragma unroll
    for (int n = 0; n < L::kSums; ++n) {
      const int i = n * kApart;
      const GroupScales& s = scales[i / 2];
      const float scale = scale_of_x[i % 2];
      sums[n] = fmaf(scale * s.scale, static_cast<float>(s.low * low[i] + s.high * high[i]), sums[n]);
      if constexpr (F::kMinimum) {
        const int sum = s.minimum_low * of_x[i % 2][0] + s.minimum_high * of_x[i % 2][1];
        sums[n] = fmaf(scale * static_cast<float>(sum), s.minimum, sums[n]);
      }
    }
  } else {
    uint32_t second[2];
    if constexpr (kApart == 1) {
      const uint4 own = tile::four(metas);
      scale_of_x[0] = __uint_as_float(own.x), second[0] = own.y;
      scale_of_x[1] = __uint_as_float(own.z), second[1] = own.w;
    } else {
      const uint2 own = tile::pair(metas);
      scale_of_x[0] = scale_of_x[1] = __uint_as_float(own.x), second[0] = second[1] = own.y;
    }
    int from[4], products[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) from[i] = F::kOffset == 0 ? kMagic : static_cast<int>(second[i % 2]);
    multiply_add_s8(products, from, a, b);
#pragma unroll
    for (int n = 0; n < L::kSums; ++n) {
      const int i = n * kApart;
      const GroupScales& s = scales[i / 2];
      const float product = __int_as_float(products[i]) - kMagicFloat;
      sums[n] = fmaf(scale_of_x[i % 2] * s.scale, product, sums[n]);
      if constexpr (F::kMinimum) sums[n] = fmaf(__uint_as_float(second[i % 2]), s.minimum, sums[n]);
    }
  }
}

}  // namespace qiao::cuda
