// The block formats on the device, one element at a time: what src/tensor/dequantize.cc says, in the same
// arithmetic, so that products and minimums are the same bits. Matrix kernels unpack whole blocks faster;
// they are held to this.
#pragma once

#include <type_traits>

#include "backend/cuda/kernel.h"
#include "tensor/dtype.h"

namespace qiao::cuda {

// An element is product + minimum, both exact in F32 (0 where the format adds nothing).
struct Unpacked {
  float product, minimum;
  __device__ float value() const { return product + minimum; }
};

// Elements and bytes of a block, as traits() has them, for kernels.
template <DType kType>
struct BlockOf {
  static constexpr int kElements = 1, kBytes = kType == DType::kF32 ? 4 : 2;
};
#define QIAO_BLOCK(type, elements, bytes)                      \
  template <>                                                  \
  struct BlockOf<DType::type> {                                \
    static constexpr int kElements = elements, kBytes = bytes; \
  };
QIAO_BLOCK(kQ4_0, 32, 18)
QIAO_BLOCK(kQ4_1, 32, 20)
QIAO_BLOCK(kQ5_0, 32, 22)
QIAO_BLOCK(kQ5_1, 32, 24)
QIAO_BLOCK(kQ8_0, 32, 34)
QIAO_BLOCK(kQ2_K, 256, 84)
QIAO_BLOCK(kQ3_K, 256, 110)
QIAO_BLOCK(kQ4_K, 256, 144)
QIAO_BLOCK(kQ5_K, 256, 176)
QIAO_BLOCK(kQ6_K, 256, 210)
QIAO_BLOCK(kIQ4_NL, 32, 18)
QIAO_BLOCK(kIQ4_XS, 256, 136)
QIAO_BLOCK(kMXFP4, 32, 17)
#undef QIAO_BLOCK

namespace block {

__device__ inline float half_at(const uint8_t* b) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(b[0] | b[1] << 8)));
}
// Element i of 32 lies in the low nibble of byte i, or the high one of byte i - 16.
__device__ inline int nibble32(const uint8_t* b, int i) { return b[i & 15] >> (i < 16 ? 0 : 4) & 15; }
__device__ inline int bit(const uint8_t* b, int i) { return b[i >> 3] >> (i & 7) & 1; }
__device__ inline float as_float(int value) { return static_cast<float>(value); }

// IQ4's values: -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113.
__device__ inline int non_linear4(int i) {
  const uint64_t eight = i < 8 ? 0xF6EADDCFBFAD9881ull : 0x7159453526190D01ull;
  return static_cast<int8_t>(eight >> (8 * (i & 7)));
}
// Twice E2M1's values: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives.
__device__ inline int twice_e2m1(int i) {
  const int magnitude = static_cast<int>(0xC8643210u >> (4 * (i & 7)) & 15);
  return i < 8 ? magnitude : -magnitude;
}
// Six-bit scale and minimum of group g of 8 in the 12 bytes at b (Q4_K, Q5_K).
__device__ inline int scale_k4(const uint8_t* b, int g) {
  return g < 4 ? b[g] & 63 : (b[g + 4] & 15) | (b[g - 4] >> 6) << 4;
}
__device__ inline int minimum_k4(const uint8_t* b, int g) {
  return g < 4 ? b[g + 4] & 63 : b[g + 4] >> 4 | (b[g] >> 6) << 4;
}

}  // namespace block

// Element i of the block at b; no alignment is asked of it.
template <DType kType>
__device__ inline Unpacked unpack(const uint8_t* b, int i) {
  using block::as_float;
  using block::half_at;
  if constexpr (kType == DType::kF32) {
    return {__uint_as_float(b[0] | b[1] << 8 | b[2] << 16 | static_cast<unsigned>(b[3]) << 24), 0};
  } else if constexpr (kType == DType::kF16) {
    return {half_at(b), 0};
  } else if constexpr (kType == DType::kBF16) {
    return {__uint_as_float(static_cast<unsigned>(b[0] | b[1] << 8) << 16), 0};
  } else if constexpr (kType == DType::kQ4_0) {
    return {as_float(block::nibble32(b + 2, i) - 8) * half_at(b), 0};
  } else if constexpr (kType == DType::kQ4_1) {
    return {as_float(block::nibble32(b + 4, i)) * half_at(b), half_at(b + 2)};
  } else if constexpr (kType == DType::kQ5_0) {
    return {as_float((block::nibble32(b + 6, i) | block::bit(b + 2, i) << 4) - 16) * half_at(b), 0};
  } else if constexpr (kType == DType::kQ5_1) {
    return {as_float(block::nibble32(b + 8, i) | block::bit(b + 4, i) << 4) * half_at(b), half_at(b + 2)};
  } else if constexpr (kType == DType::kQ8_0) {
    return {as_float(static_cast<int8_t>(b[2 + i])) * half_at(b), 0};
  } else if constexpr (kType == DType::kQ2_K) {
    const int scales = b[i / 16];
    const int quant = b[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
    return {half_at(b + 80) * as_float(scales & 15) * as_float(quant),
            -(half_at(b + 82) * as_float(scales >> 4))};
  } else if constexpr (kType == DType::kQ3_K) {
    const int group = i / 16;
    const int scale =
        (b[96 + group % 8] >> (group < 8 ? 0 : 4) & 15) | (b[104 + group % 4] >> (2 * (group / 4)) & 3) << 4;
    const int quant = (b[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3) -
                      ((b[i % 32] >> (i / 32) & 1) != 0 ? 0 : 4);
    return {half_at(b + 108) * as_float(scale - 32) * as_float(quant), 0};
  } else if constexpr (kType == DType::kQ4_K || kType == DType::kQ5_K) {
    constexpr bool kFive = kType == DType::kQ5_K;
    const int group = i / 32;
    int quant = b[(kFive ? 48 : 16) + i / 64 * 32 + i % 32] >> (group % 2 == 0 ? 0 : 4) & 15;
    if constexpr (kFive) quant |= (b[16 + i % 32] >> group & 1) << 4;
    return {half_at(b) * as_float(block::scale_k4(b + 4, group)) * as_float(quant),
            -(half_at(b + 2) * as_float(block::minimum_k4(b + 4, group)))};
  } else if constexpr (kType == DType::kQ6_K) {
    const int part = i / 128, quarter = i % 128 / 32;
    const int quant = (b[part * 64 + i % 64] >> (quarter < 2 ? 0 : 4) & 15) |
                      (b[128 + part * 32 + i % 32] >> (2 * quarter) & 3) << 4;
    return {half_at(b + 208) * as_float(static_cast<int8_t>(b[192 + i / 16])) * as_float(quant - 32), 0};
  } else if constexpr (kType == DType::kIQ4_NL) {
    return {half_at(b) * as_float(block::non_linear4(block::nibble32(b + 2, i))), 0};
  } else if constexpr (kType == DType::kIQ4_XS) {
    const int group = i / 32;
    const int scale = (b[4 + group / 2] >> (group % 2 == 0 ? 0 : 4) & 15) |
                      (b[2 + group / 4] >> (2 * (group % 4)) & 3) << 4;
    return {half_at(b) * as_float(scale - 32) *
                as_float(block::non_linear4(block::nibble32(b + 8 + group * 16, i % 32))),
            0};
  } else {
    static_assert(kType == DType::kMXFP4, "a weight's dtype");
    // E8M0 is 2^(e - 127), half of it for the doubled table.
    const unsigned e = b[0];
    const float scale = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    return {as_float(block::twice_e2m1(block::nibble32(b + 1, i))) * scale, 0};
  }
}

// Element i of a row that begins at `row`.
template <DType kType>
__device__ inline Unpacked unpack_at(const uint8_t* row, int64_t i) {
  constexpr int kElements = BlockOf<kType>::kElements;
  return unpack<kType>(row + i / kElements * BlockOf<kType>::kBytes, static_cast<int>(i % kElements));
}

// Calls run(std::integral_constant<DType, kType>()) for the weight dtype `dtype`; false for any other.
template <class Run>
bool for_weight_dtype(DType dtype, Run run) {
#define QIAO_CASE(type)                                \
  case DType::type:                                    \
    run(std::integral_constant<DType, DType::type>()); \
    return true;
  switch (dtype) {
    QIAO_CASE(kF32)
    QIAO_CASE(kF16)
    QIAO_CASE(kBF16)
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
    default:
      return false;
  }
#undef QIAO_CASE
}

}  // namespace qiao::cuda
