// Single elements of a weight on the device, for what is no matrix product: gather, and the products in F32.
#pragma once

#include "backend/cuda/weight_formats.h"

namespace qiao::cuda {

// The 16 elements of a lane 4 g + j in the 32 columns of `group`: value[4 i + e] is of row g (i even) or g +
// 8, column 4 j + e (i < 2) or 16 + 4 j + e.
template <DType kType>
__device__ inline void unpack_lane(const uint8_t* tile, int lane, int group, float (&value)[16]) {
  using F = Format<kType>;
  uint32_t quants[4];
  signed_quants<F>(tile, lane, group, quants);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const GroupScales s = F::scales(tile, lane / 4 + 8 * half, group);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const float scale = F::kHalves ? s.scale * static_cast<float>(part == 0 ? s.low : s.high) : s.scale;
      const float minimum =
          F::kHalves ? s.minimum * static_cast<float>(part == 0 ? s.minimum_low : s.minimum_high) : s.minimum;
      const uint32_t four = quants[2 * part + half];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float quant = kType == DType::kF8_128
                                ? float_of_e4m3(static_cast<uint8_t>(four >> (8 * e)))
                                : static_cast<float>(static_cast<int8_t>(four >> (8 * e)));
        value[4 * (2 * part + half) + e] = F::kMinimum ? fmaf(scale, quant, minimum) : scale * quant;
      }
    }
  }
}

// Two elements of a plain 16-bit dtype in a word.
template <DType kType>
__device__ inline float2 unpack_two(uint32_t word) {
  if constexpr (kType == DType::kBF16) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  } else {
    return make_float2(tile::half_of(word & 0xffff), tile::half_of(word >> 16));
  }
}

// Elements k to k + 3 of row `row`, k a multiple of 4 below `columns`; zeros from there on.
__device__ inline float4 weight_four(const WeightRows& w, int64_t row, int64_t k) {
  const int r = static_cast<int>(row % kTileRows), g = r % 8, half = r / 8;
  const uint8_t* tiles = w.tiles + row / kTileRows * w.units * tile_layout(w.dtype).bytes();
  float4 four = make_float4(0, 0, 0, 0);
  if (w.dtype == DType::kF32) {
    const uint8_t* at = tiles + k / 8 * 512 + g * 64 + half * 4 + k % 8 / 4 * 8;
    const auto element = [&](int i) { return __uint_as_float(tile::word(at + 16 * i)); };
    return make_float4(element(0), element(1), element(2), element(3));
  }
  if (w.dtype == DType::kF16 || w.dtype == DType::kBF16) {
    const uint8_t* at = tiles + k / 16 * 512 + (g * 4 + k % 8 / 2) * 16 + half * 4 + k % 16 / 8 * 8;
    const uint32_t words[2] = {tile::word(at), tile::word(at + 16)};
    const bool brain = w.dtype == DType::kBF16;
    const float2 a = brain ? unpack_two<DType::kBF16>(words[0]) : unpack_two<DType::kF16>(words[0]);
    const float2 b = brain ? unpack_two<DType::kBF16>(words[1]) : unpack_two<DType::kF16>(words[1]);
    return make_float4(a.x, a.y, b.x, b.y);
  }
  for_block_format(w.dtype, [&](auto type) {
    using F = Format<type()>;
    const int group = static_cast<int>(k % F::kElements / 32), lane = g * 4 + static_cast<int>(k % 16 / 4);
    const bool second = k % 32 >= 16;  // of the group's halves of 16
    const uint8_t* tile = tiles + k / F::kElements * F::kTileBytes;
    float values[16];
    unpack_lane<type()>(tile, lane, group, values);
    // An index that is known only here would send the array to memory.
    const auto element = [&](int e) {
      const float upper = second ? values[8 + e] : values[e], lower = second ? values[12 + e] : values[4 + e];
      return half == 0 ? upper : lower;
    };
    four = make_float4(element(0), element(1), element(2), element(3));
  });
  return four;
}

}  // namespace qiao::cuda
