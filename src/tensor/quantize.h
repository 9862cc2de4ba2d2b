// Floats to block formats, by the methods of ggml's reference quantizers (ggml-quants.c, quantize_row_*_ref),
// without an importance matrix: what llama-quantize writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tensor/dtype.h"

namespace qiao {

// Q4_0, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K, and F32, F16 and BF16.
bool can_quantize(DType dtype);

// values.size() is a multiple of the block; row_bytes(dtype, values.size()) bytes are written. Finite values
// are the caller's duty. Safe from any thread.
void quantize(std::span<const float> values, DType dtype, std::byte* bytes);

}  // namespace qiao
