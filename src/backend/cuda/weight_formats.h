// The block formats as their tiles (weight_layout.h) give them to a warp: the quants of 16 rows by 32 columns
// as the four words of a lane that mma.m16n8k32 takes as A, each byte an element, and each row's scales. In
// the same arithmetic as src/tensor/dequantize.cc: products and minimums are exact in F32, but the
// products of F8_128.
#pragma once

#include <type_traits>

#include "backend/cuda/kernel.h"
#include "backend/cuda/weight_layout.h"

namespace qiao::cuda {

// Of a row and a group of 32: element = quant * scale + minimum, where a format with scales for each 16
// (kHalves) has quant * low * scale + minimum_low * minimum for the first 16 and high, minimum_high for the
// rest.
struct GroupScales {
  float scale = 0, minimum = 0;
  int low = 1, high = 1, minimum_low = 1, minimum_high = 1;
};

namespace tile {

__device__ inline uint32_t word(const uint8_t* at) { return *reinterpret_cast<const uint32_t*>(at); }
__device__ inline uint2 pair(const uint8_t* at) { return *reinterpret_cast<const uint2*>(at); }
__device__ inline uint4 four(const uint8_t* at) { return *reinterpret_cast<const uint4*>(at); }
__device__ inline float half_of(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ inline float half_at(const uint8_t* at) {
  return half_of(*reinterpret_cast<const unsigned short*>(at));
}
// Byte i of a little-endian word, or nibble i.
__device__ inline int byte_of(uint32_t word, int i) { return static_cast<int>(word >> (8 * i) & 255); }
__device__ inline int nibble_of(uint32_t word, int i) { return static_cast<int>(word >> (4 * i) & 15); }

// Takes kOffset from each byte, all of which are below 128 - kOffset: no borrow crosses.
template <int kOffset>
__device__ inline uint32_t minus(uint32_t bytes) {
  constexpr uint32_t kOnes = 0x01010101u;
  return (bytes + (0x80 - kOffset) * kOnes) ^ (0x80 * kOnes);
}
// Bits 0 to 3 of `bits` to bit kTo of each byte: four copies 7 apart, which do not meet.
template <int kTo>
__device__ inline uint32_t spread(uint32_t bits) {
  return (bits & 15) * (0x00204081u << kTo) & (0x01010101u << kTo);
}

// The table's entries of the low and the high nibbles of a word; four entries a word of the table.
struct Table {
  uint32_t entries[4];
};
__device__ inline Table non_linear4() { return {{0xBFAD9881u, 0xF6EADDCFu, 0x26190D01u, 0x71594535u}}; }
__device__ inline Table twice_e2m1() { return {{0x03020100u, 0x0C080604u, 0xFDFEFF00u, 0xF4F8FAFCu}}; }
__device__ inline uint32_t look_up4(const Table& t, uint32_t nibbles) {
  const uint32_t index = nibbles & 0x7777u;
  const uint32_t below = __byte_perm(t.entries[0], t.entries[1], index);
  const uint32_t above = __byte_perm(t.entries[2], t.entries[3], index);
  return __byte_perm(below, above, 0x3210u | (nibbles & 0x8888u) >> 1);
}
__device__ inline void look_up(const Table& t, uint32_t word, uint32_t& low, uint32_t& high) {
  const uint32_t first = look_up4(t, word), second = look_up4(t, word >> 16);
  low = __byte_perm(first, second, 0x6420);
  high = __byte_perm(first, second, 0x7531);
}

// 32 elements in 16 bytes of nibbles: the low ones are the first 16 elements.
__device__ inline void nibbles16(const uint8_t* at, int lane, uint32_t (&a)[4]) {
  const uint2 w = pair(at + lane * 8);
  a[0] = w.x & 0x0f0f0f0fu, a[1] = w.y & 0x0f0f0f0fu;
  a[2] = w.x >> 4 & 0x0f0f0f0fu, a[3] = w.y >> 4 & 0x0f0f0f0fu;
}
__device__ inline void table16(const Table& t, const uint8_t* at, int lane, uint32_t (&a)[4]) {
  const uint2 w = pair(at + lane * 8);
  look_up(t, w.x, a[0], a[2]);
  look_up(t, w.y, a[1], a[3]);
}
// `bits` (a mask of each byte) of four words, shifted down by `shift`, then up by kUp.
template <int kUp = 0>
__device__ inline void bits32(const uint8_t* at, int lane, int shift, uint32_t mask, uint32_t (&a)[4]) {
  const uint4 w = four(at + lane * 16);
  a[0] |= (w.x >> shift & mask) << kUp, a[1] |= (w.y >> shift & mask) << kUp;
  a[2] |= (w.z >> shift & mask) << kUp, a[3] |= (w.w >> shift & mask) << kUp;
}
template <int kOffset>
__device__ inline void minus_all(uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = minus<kOffset>(a[i]);
}
// The fifth bits of Q5_0 and Q5_1: 32 of a row in a word.
__device__ inline void fifth_bits(const uint8_t* high, int lane, uint32_t (&a)[4]) {
  const int g = lane / 4, shift = lane % 4 * 4;
  const uint32_t first = word(high + 4 * g) >> shift, second = word(high + 4 * g + 32) >> shift;
  a[0] |= spread<4>(first), a[1] |= spread<4>(second);
  a[2] |= spread<4>(first >> 16), a[3] |= spread<4>(second >> 16);
}

// Q4_K's and Q5_K's 16 bytes of a row: d, dmin and 8 six-bit scales and minimums in 12 bytes.
__device__ inline GroupScales scales_k4(const uint8_t* header, int group) {
  const uint4 w = four(header);
  const uint32_t scales = w.y, minimums = w.z, rest = w.w;  // bytes 0-3, 4-7, 8-11
  const int i = group & 3;
  const int low_scale = byte_of(scales, i), low_minimum = byte_of(minimums, i), both = byte_of(rest, i);
  const int scale = group < 4 ? low_scale & 63 : (both & 15) | (low_scale >> 6) << 4;
  const int minimum = group < 4 ? low_minimum & 63 : both >> 4 | (low_minimum >> 6) << 4;
  return {half_of(w.x & 0xffff) * static_cast<float>(scale),
          -(half_of(w.x >> 16) * static_cast<float>(minimum))};
}

}  // namespace tile

template <DType kType>
struct Format;

// What they share. kGroups: of 32 columns in a tile. kOffset: what an element is less than quants() gives.
template <DType kType, bool kWithMinimum, bool kWithHalves, int kLess = 0>
struct FormatTraits {
  static constexpr TileLayout kLayout = tile_layout(kType);
  static constexpr int kElements = kLayout.elements, kGroups = kElements / 32, kTileBytes = kLayout.bytes();
  static constexpr bool kMinimum = kWithMinimum, kHalves = kWithHalves;
  static constexpr int kOffset = kLess;
};

template <>
struct Format<DType::kQ4_0> : FormatTraits<DType::kQ4_0, false, false, 8> {
  __device__ static void quants(const uint8_t* t, int lane, int, uint32_t (&a)[4]) {
    tile::nibbles16(t, lane, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int) {
    return {tile::half_at(t + 256 + 2 * row)};
  }
};

template <>
struct Format<DType::kQ4_1> : FormatTraits<DType::kQ4_1, true, false> {
  __device__ static void quants(const uint8_t* t, int lane, int, uint32_t (&a)[4]) {
    tile::nibbles16(t, lane, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int) {
    const uint32_t both = tile::word(t + 256 + 4 * row);
    return {tile::half_of(both & 0xffff), tile::half_of(both >> 16)};
  }
};

template <>
struct Format<DType::kQ5_0> : FormatTraits<DType::kQ5_0, false, false, 16> {
  __device__ static void quants(const uint8_t* t, int lane, int, uint32_t (&a)[4]) {
    tile::nibbles16(t, lane, a);
    tile::fifth_bits(t + 256, lane, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int) {
    return {tile::half_at(t + 320 + 2 * row)};
  }
};

template <>
struct Format<DType::kQ5_1> : FormatTraits<DType::kQ5_1, true, false> {
  __device__ static void quants(const uint8_t* t, int lane, int, uint32_t (&a)[4]) {
    tile::nibbles16(t, lane, a);
    tile::fifth_bits(t + 256, lane, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int) {
    const uint32_t both = tile::word(t + 320 + 4 * row);
    return {tile::half_of(both & 0xffff), tile::half_of(both >> 16)};
  }
};

template <>
struct Format<DType::kQ8_0> : FormatTraits<DType::kQ8_0, false, false> {
  __device__ static void quants(const uint8_t* t, int lane, int, uint32_t (&a)[4]) {
    const uint4 w = tile::four(t + lane * 16);
    a[0] = w.x, a[1] = w.y, a[2] = w.z, a[3] = w.w;
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int) {
    return {tile::half_at(t + 512 + 2 * row)};
  }
};

template <>
struct Format<DType::kIQ4_NL> : FormatTraits<DType::kIQ4_NL, false, false> {
  __device__ static void quants(const uint8_t* t, int lane, int, uint32_t (&a)[4]) {
    tile::table16(tile::non_linear4(), t, lane, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int) {
    return {tile::half_at(t + 256 + 2 * row)};
  }
};

template <>
struct Format<DType::kMXFP4> : FormatTraits<DType::kMXFP4, false, false> {
  __device__ static void quants(const uint8_t* t, int lane, int, uint32_t (&a)[4]) {
    tile::table16(tile::twice_e2m1(), t, lane, a);
  }
  // E8M0 is 2^(e - 127), half of it for the doubled table.
  __device__ static GroupScales scales(const uint8_t* t, int row, int) {
    const uint32_t e = t[256 + row];
    return {__uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23)};
  }
};

template <>
struct Format<DType::kQ2_K> : FormatTraits<DType::kQ2_K, true, true> {
  __device__ static void quants(const uint8_t* t, int lane, int group, uint32_t (&a)[4]) {
    a[0] = a[1] = a[2] = a[3] = 0;
    tile::bits32(t + group / 4 * 512, lane, 2 * (group % 4), 0x03030303u, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int group) {
    const uint32_t both = *reinterpret_cast<const uint16_t*>(t + 1024 + 16 * row + 2 * group);
    const uint32_t d = tile::word(t + 1280 + 4 * row);
    return {tile::half_of(d & 0xffff), -tile::half_of(d >> 16),  tile::nibble_of(both, 0),
            tile::nibble_of(both, 2),  tile::nibble_of(both, 1), tile::nibble_of(both, 3)};
  }
};

template <>
struct Format<DType::kQ3_K> : FormatTraits<DType::kQ3_K, false, true, 4> {
  __device__ static void quants(const uint8_t* t, int lane, int group, uint32_t (&a)[4]) {
    a[0] = a[1] = a[2] = a[3] = 0;
    tile::bits32(t + group / 4 * 512, lane, 2 * (group % 4), 0x03030303u, a);
    tile::bits32<2>(t + 1024, lane, group, 0x01010101u, a);
  }
  // Scale s of 16: four bits of byte s % 8, two of byte 8 + s % 4.
  __device__ static GroupScales scales(const uint8_t* t, int row, int group) {
    const uint8_t* packed = t + 1536 + 12 * row;
    const int four = group / 2, at = group % 2 * 16;  // of the scales 4 * four on; where in them
    const uint32_t low = tile::word(packed + four % 2 * 4) >> (four < 2 ? 0 : 4) & 0x0f0f0f0fu;
    const uint32_t top = tile::word(packed + 8) >> (2 * four) & 0x03030303u;
    const uint32_t scales = tile::minus<32>(low | top << 4);
    return {tile::half_at(t + 1728 + 2 * row), 0, static_cast<int8_t>(scales >> at),
            static_cast<int8_t>(scales >> (at + 8))};
  }
};

template <>
struct Format<DType::kQ4_K> : FormatTraits<DType::kQ4_K, true, false> {
  __device__ static void quants(const uint8_t* t, int lane, int group, uint32_t (&a)[4]) {
    a[0] = a[1] = a[2] = a[3] = 0;
    tile::bits32(t + group / 2 * 512, lane, 4 * (group % 2), 0x0f0f0f0fu, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int group) {
    return tile::scales_k4(t + 2048 + 16 * row, group);
  }
};

template <>
struct Format<DType::kQ5_K> : FormatTraits<DType::kQ5_K, true, false> {
  __device__ static void quants(const uint8_t* t, int lane, int group, uint32_t (&a)[4]) {
    a[0] = a[1] = a[2] = a[3] = 0;
    tile::bits32(t + group / 2 * 512, lane, 4 * (group % 2), 0x0f0f0f0fu, a);
    tile::bits32<4>(t + 2048, lane, group, 0x01010101u, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int group) {
    return tile::scales_k4(t + 2560 + 16 * row, group);
  }
};

template <>
struct Format<DType::kQ6_K> : FormatTraits<DType::kQ6_K, false, true, 32> {
  __device__ static void quants(const uint8_t* t, int lane, int group, uint32_t (&a)[4]) {
    a[0] = a[1] = a[2] = a[3] = 0;
    const int part = group / 4, quarter = group % 4;
    tile::bits32(t + (2 * part + quarter % 2) * 512, lane, 4 * (quarter / 2), 0x0f0f0f0fu, a);
    tile::bits32<4>(t + 2048 + part * 512, lane, 2 * quarter, 0x03030303u, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int group) {
    const uint32_t both = *reinterpret_cast<const uint16_t*>(t + 3072 + 16 * row + 2 * group);
    return {tile::half_at(t + 3328 + 2 * row), 0, static_cast<int8_t>(both & 255),
            static_cast<int8_t>(both >> 8)};
  }
};

template <>
struct Format<DType::kIQ4_XS> : FormatTraits<DType::kIQ4_XS, false, false> {
  __device__ static void quants(const uint8_t* t, int lane, int group, uint32_t (&a)[4]) {
    tile::table16(tile::non_linear4(), t + group * 256, lane, a);
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int group) {
    const uint2 header = tile::pair(t + 2048 + 8 * row);  // d, high bits, low nibbles
    const int scale = tile::nibble_of(header.y, group) | static_cast<int>(header.x >> (16 + 2 * group) & 3)
                                                             << 4;
    return {tile::half_of(header.x & 0xffff) * static_cast<float>(scale - 32)};
  }
};

// Numbers of E4M3 rather than integers.
template <>
struct Format<DType::kF8_128> : FormatTraits<DType::kF8_128, false, false> {
  __device__ static void quants(const uint8_t* t, int lane, int group, uint32_t (&a)[4]) {
    const uint4 w = tile::four(t + group * 512 + lane * 16);
    a[0] = w.x, a[1] = w.y, a[2] = w.z, a[3] = w.w;
  }
  __device__ static GroupScales scales(const uint8_t* t, int row, int) {
    return {__uint_as_float(tile::word(t + 2048 + 4 * row))};
  }
};

// The elements themselves.
template <class F>
__device__ inline void signed_quants(const uint8_t* t, int lane, int group, uint32_t (&a)[4]) {
  F::quants(t, lane, group, a);
  if constexpr (F::kOffset != 0) tile::minus_all<F::kOffset>(a);
}

// Calls run(std::integral_constant<DType, kType>()) for a block format; false for any other dtype.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Run>
QIAO_HOST_DEVICE inline bool for_block_format(DType dtype, Run run) {
#define QIAO_CASE(type)                                \
  case DType::type:                                    \
    run(std::integral_constant<DType, DType::type>()); \
    return true;
  switch (dtype) {
    QIAO_CASE(kQ4_0)
    QIAO_CASE(kQ4_1)
    QIAO_CASE(kQ5_0)
    QIAO_CASE(kQ5_1)
    QIAO_CASE(kQ8_0)
    QIAO_CASE(kQ2_K)
    QIAO_CASE(kQ3_K)
    QIAO_CASE(kQ4_K)
    QIAO_CASE(kQ5_K)
    QIAO_CASE(kQ6_K)
    QIAO_CASE(kIQ4_NL)
    QIAO_CASE(kIQ4_XS)
    QIAO_CASE(kMXFP4)
    QIAO_CASE(kF8_128)
    default:
      return false;
  }
#undef QIAO_CASE
}

}  // namespace qiao::cuda
