// The block formats, unpacked plainly: one element after the other, as the format's home defines them
// (ggml-quants.c, dequantize_row_*).
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace qiao {

// An element is product + minimum: scale times quant, and what the format adds (0 where it adds nothing).
// Both are exact in F32, but for F8_128, whose scale has all of F32's bits: its product is rounded to F32.
// The sum rounds.
struct QuantTerm {
  float product = 0;
  float minimum = 0;
  float value() const { return product + minimum; }
};

// `elements` consecutive elements of a row of F32, F16, BF16 or a block format; a multiple of the block. No
// alignment is asked of bytes.
void dequantize_terms(DType dtype, const std::byte* bytes, int64_t elements, QuantTerm* out);
void dequantize(DType dtype, const std::byte* bytes, int64_t elements, float* out);

}  // namespace qiao
