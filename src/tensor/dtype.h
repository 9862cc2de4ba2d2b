// Element types: the plain ones, the block formats of GGUF (ggml-common.h of the format's home defines the
// bytes), and the block format that FP8 weights of every kind are read as.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace qiao {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF64,
  kI8,
  kI16,
  kI32,
  kI64,
  kU8,
  // Block formats: weights only.
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
  kMXFP4,
  kF8_128,   // 128 numbers of E4M3, then their scale in F32 (tensor/fp8.h); in no file
  kF8_E4M3,  // plain: 4 bits of exponent, 3 of mantissa, NaN but no infinity (OCP 8-bit floating point)
};
inline constexpr int kDTypeCount = static_cast<int>(DType::kF8_E4M3) + 1;

struct DTypeTraits {
  std::string_view name;  // as GGUF tools print it: "F32", "Q4_K"
  int block_elements;     // 1 for the plain ones
  int block_bytes;
  bool quantized;  // a block format
};

const DTypeTraits& traits(DType dtype);
inline constexpr int64_t kF8Block = 128;                  // elements of a block of F8_128
std::optional<DType> dtype_named(std::string_view name);  // case-insensitive

// Bytes of `elements` consecutive elements of a row; elements must be a multiple of block_elements.
int64_t row_bytes(DType dtype, int64_t elements);

}  // namespace qiao
