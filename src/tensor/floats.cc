#include "tensor/floats.h"

#include <cstring>

#include "tensor/half.h"

namespace qiao {

bool is_dense_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

void to_floats(DType dtype, const std::byte* bytes, std::span<float> values) {
  if (values.empty()) return;
  if (dtype == DType::kF32) {
    std::memcpy(values.data(), bytes, values.size_bytes());
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, bytes + i * sizeof(half), sizeof(half));
    values[i] = dtype == DType::kF16 ? f16_to_float(half) : bf16_to_float(half);
  }
}

void from_floats(std::span<const float> values, DType dtype, std::byte* bytes) {
  if (values.empty()) return;
  if (dtype == DType::kF32) {
    std::memcpy(bytes, values.data(), values.size_bytes());
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = dtype == DType::kF16 ? float_to_f16(values[i]) : float_to_bf16(values[i]);
    std::memcpy(bytes + i * sizeof(half), &half, sizeof(half));
  }
}

}  // namespace qiao
