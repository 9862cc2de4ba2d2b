// Rounding to E4M3 in loops that the compiler turns into vectors; included by files of an instruction set,
// into which each function is always inlined: a copy of its own would be one set's for all.
#pragma once

#include <cstdint>

#include "backend/ops/common.h"

namespace qiao::cpu {

// A block's scale and what its numbers are multiplied with, from the bits of its largest magnitude, which
// order as magnitudes do, NaN above all: a NaN or an infinity makes the scale NaN.
struct BlockScale {
  float scale, inverse;
};
[[gnu::always_inline]] inline BlockScale e4m3_scale(int32_t most) {
  float maximum;
  __builtin_memcpy(&maximum, &most, sizeof most);
  const bool zero = maximum < kQ8Smallest, finite = most < 0x7f800000;
  return {zero ? 0.0f : finite ? maximum / 448.0f : __builtin_nanf(""), zero ? 0.0f : 448.0f / maximum};
}

[[gnu::always_inline]] inline int32_t magnitude_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return static_cast<int32_t>(bits & 0x7fffffffu);
}

// The number of E4M3 nearest to v: rounding keeps 20 bits fewer of a float; below 2^-6, where the numbers are
// 2^-9 apart, adding and taking away 2^14 does it.
[[gnu::always_inline]] inline float nearest_e4m3(float v) {
  v = v > -448.0f ? v : -448.0f;
  v = v < 448.0f ? v : 448.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) & 0xfff00000u;
  float small;
  __builtin_memcpy(&small, &magnitude, sizeof magnitude);
  small = (small + 0x1p14f) - 0x1p14f;
  uint32_t rounded;
  __builtin_memcpy(&rounded, &small, sizeof small);
  rounded = magnitude < 0x3c800000u ? rounded : normal;
  rounded |= bits & 0x80000000u;
  __builtin_memcpy(&v, &rounded, sizeof rounded);
  return v;
}

}  // namespace qiao::cpu
