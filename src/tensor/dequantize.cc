// Part of the law (reference_class.h). Offsets into a block are those of the format's struct; nothing here is
// fast.
#include "tensor/dequantize.h"

#include <bit>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "tensor/half.h"

namespace qiao {
namespace {

constexpr int kNonLinear4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int kTwiceE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct Block {
  const std::byte* bytes;
  int at(int offset) const { return static_cast<int>(bytes[offset]); }
  int low(int offset) const { return at(offset) & 15; }
  int high(int offset) const { return at(offset) >> 4; }
  int nibble(int offset, bool upper) const { return upper ? high(offset) : low(offset); }
  int bit(int offset, int index) const { return at(offset) >> index & 1; }
  int pair(int offset, int index) const { return at(offset) >> (2 * index) & 3; }
  float half(int offset) const {
    return f16_to_float(static_cast<uint16_t>(at(offset) | at(offset + 1) << 8));
  }
};

float as_float(int value) { return static_cast<float>(value); }

// Element i of a 32-element block lies in the low nibble of byte i, or the high one of byte i - 16.
int nibble32(const Block& b, int quants, int i) { return b.nibble(quants + i % 16, i >= 16); }

QuantTerm q4_0(const Block& b, int i) { return {as_float(nibble32(b, 2, i) - 8) * b.half(0)}; }
QuantTerm q4_1(const Block& b, int i) { return {as_float(nibble32(b, 4, i)) * b.half(0), b.half(2)}; }

QuantTerm q5_0(const Block& b, int i) {
  return {as_float((nibble32(b, 6, i) | b.bit(2 + i / 8, i % 8) << 4) - 16) * b.half(0)};
}

QuantTerm q5_1(const Block& b, int i) {
  return {as_float(nibble32(b, 8, i) | b.bit(4 + i / 8, i % 8) << 4) * b.half(0), b.half(2)};
}

QuantTerm q8_0(const Block& b, int i) { return {as_float(static_cast<int8_t>(b.at(2 + i))) * b.half(0)}; }
QuantTerm iq4_nl(const Block& b, int i) { return {b.half(0) * as_float(kNonLinear4[nibble32(b, 2, i)])}; }

QuantTerm mxfp4(const Block& b, int i) {
  // E8M0 is 2^(e - 127), half of it for the doubled table.
  const uint32_t e = static_cast<uint32_t>(b.at(0));
  const float scale = std::bit_cast<float>(e < 2 ? uint32_t{0x00200000} << e : (e - 1) << 23);
  return {as_float(kTwiceE2M1[nibble32(b, 1, i)]) * scale};
}

QuantTerm q2_k(const Block& b, int i) {
  const int scales = b.at(i / 16);
  const int quant = b.pair(16 + i / 128 * 32 + i % 32, i % 128 / 32);
  return {b.half(80) * as_float(scales & 15) * as_float(quant), -(b.half(82) * as_float(scales >> 4))};
}

QuantTerm q3_k(const Block& b, int i) {
  const int group = i / 16;
  const int scale = b.nibble(96 + group % 8, group >= 8) | b.pair(104 + group % 4, group / 4) << 4;
  const int quant = b.pair(32 + i / 128 * 32 + i % 32, i % 128 / 32) - (b.bit(i % 32, i / 32) != 0 ? 0 : 4);
  return {b.half(108) * as_float(scale - 32) * as_float(quant)};
}

// Six-bit scale and minimum of group g of 8, packed in the 12 bytes from 4.
int scale_k4(const Block& b, int g) { return g < 4 ? b.at(4 + g) & 63 : b.low(8 + g) | b.at(g) >> 6 << 4; }
int minimum_k4(const Block& b, int g) {
  return g < 4 ? b.at(8 + g) & 63 : b.high(8 + g) | b.at(4 + g) >> 6 << 4;
}

QuantTerm q4_k(const Block& b, int i) {
  const int group = i / 32;
  const int quant = b.nibble(16 + i / 64 * 32 + i % 32, group % 2 == 1);
  return {b.half(0) * as_float(scale_k4(b, group)) * as_float(quant),
          -(b.half(2) * as_float(minimum_k4(b, group)))};
}

QuantTerm q5_k(const Block& b, int i) {
  const int group = i / 32;
  const int quant = b.nibble(48 + i / 64 * 32 + i % 32, group % 2 == 1) | b.bit(16 + i % 32, group) << 4;
  return {b.half(0) * as_float(scale_k4(b, group)) * as_float(quant),
          -(b.half(2) * as_float(minimum_k4(b, group)))};
}

QuantTerm q6_k(const Block& b, int i) {
  const int part = i / 128;
  const int quarter = i % 128 / 32;
  const int quant =
      (b.nibble(part * 64 + i % 64, quarter >= 2) | b.pair(128 + part * 32 + i % 32, quarter) << 4);
  const int8_t scale = static_cast<int8_t>(b.at(192 + i / 16));
  return {b.half(208) * as_float(scale) * as_float(quant - 32)};
}

QuantTerm iq4_xs(const Block& b, int i) {
  const int group = i / 32;
  const int scale = b.nibble(4 + group / 2, group % 2 == 1) | b.pair(2 + group / 4, group % 4) << 4;
  return {b.half(0) * as_float(scale - 32) *
          as_float(kNonLinear4[b.nibble(8 + group * 16 + i % 16, i % 32 >= 16)])};
}

QuantTerm f8_128(const Block& b, int i) {
  float scale;
  std::memcpy(&scale, b.bytes + 128, sizeof scale);
  return {scale * e4m3_to_float(static_cast<uint8_t>(b.at(i)))};
}

QuantTerm f32(const Block& b, int) {
  float value;
  std::memcpy(&value, b.bytes, sizeof value);
  return {value};
}
QuantTerm f16(const Block& b, int) { return {b.half(0)}; }
QuantTerm bf16(const Block& b, int) { return {bf16_to_float(static_cast<uint16_t>(b.at(0) | b.at(1) << 8))}; }

using Element = QuantTerm (*)(const Block&, int);

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return f32;
    case DType::kF16:
      return f16;
    case DType::kBF16:
      return bf16;
    case DType::kQ4_0:
      return q4_0;
    case DType::kQ4_1:
      return q4_1;
    case DType::kQ5_0:
      return q5_0;
    case DType::kQ5_1:
      return q5_1;
    case DType::kQ8_0:
      return q8_0;
    case DType::kQ2_K:
      return q2_k;
    case DType::kQ3_K:
      return q3_k;
    case DType::kQ4_K:
      return q4_k;
    case DType::kQ5_K:
      return q5_k;
    case DType::kQ6_K:
      return q6_k;
    case DType::kIQ4_NL:
      return iq4_nl;
    case DType::kIQ4_XS:
      return iq4_xs;
    case DType::kMXFP4:
      return mxfp4;
    case DType::kF8_128:
      return f8_128;
    default:
      throw_error(ErrorKind::kUnsupported, "dequantize: {} is no weight's dtype", traits(dtype).name);
  }
}

}  // namespace

void dequantize_terms(DType dtype, const std::byte* bytes, int64_t elements, QuantTerm* out) {
  const Element element = element_of(dtype);
  const int64_t block = traits(dtype).block_elements;
  QIAO_ASSERT(elements % block == 0);
  for (int64_t i = 0; i < elements; ++i) {
    const Block b{bytes + i / block * traits(dtype).block_bytes};
    out[i] = element(b, static_cast<int>(i % block));
  }
}

void dequantize(DType dtype, const std::byte* bytes, int64_t elements, float* out) {
  std::vector<QuantTerm> terms(static_cast<size_t>(elements));
  dequantize_terms(dtype, bytes, elements, terms.data());
  for (int64_t i = 0; i < elements; ++i) out[i] = terms[static_cast<size_t>(i)].value();
}

}  // namespace qiao
