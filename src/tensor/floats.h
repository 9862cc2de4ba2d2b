// Arrays of F32, F16 and BF16 in memory, from and to float.
#pragma once

#include <cstddef>
#include <span>

#include "tensor/dtype.h"

namespace qiao {

// Whether a dtype is one of the three.
bool is_dense_float(DType dtype);

// The first values.size() elements at `bytes`, exactly. No alignment is asked of bytes. Required:
// is_dense_float(dtype).
void to_floats(DType dtype, const std::byte* bytes, std::span<float> values);
// The other way, rounded to nearest even.
void from_floats(std::span<const float> values, DType dtype, std::byte* bytes);

}  // namespace qiao
