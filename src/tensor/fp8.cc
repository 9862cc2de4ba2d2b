#include "tensor/fp8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "tensor/half.h"

namespace qiao {
namespace {

constexpr int64_t kBlockBytes = kF8Block + static_cast<int64_t>(sizeof(float));
constexpr float kSmallest = 0x1p-100f;  // below it the inverse of a scale would overflow

}  // namespace

void join_f8(const std::byte* numbers, const F8Scales& scales, int64_t first_row, int64_t rows,
             int64_t columns, std::byte* to) {
  QIAO_ASSERT(scales.fit_f8_128(columns));
  for (int64_t n = first_row; n < first_row + rows; ++n) {
    for (int64_t k = 0; k < columns; k += kF8Block, to += kBlockBytes) {
      const float scale = scales.at(n, k);
      std::memcpy(to, numbers + n * columns + k, static_cast<size_t>(kF8Block));
      std::memcpy(to + kF8Block, &scale, sizeof scale);
    }
  }
}

void dequantize_f8(const std::byte* numbers, const F8Scales& scales, int64_t first_row, int64_t rows,
                   int64_t columns, float* to) {
  for (int64_t n = first_row; n < first_row + rows; ++n) {
    for (int64_t k = 0; k < columns; ++k)
      *to++ = scales.at(n, k) * e4m3_to_float(static_cast<uint8_t>(numbers[n * columns + k]));
  }
}

void quantize_f8(std::span<const float> values, int64_t rows, int64_t columns, std::byte* to) {
  QIAO_ASSERT(columns % kF8Block == 0 && static_cast<int64_t>(values.size()) == rows * columns);
  const int64_t row = row_bytes(DType::kF8_128, columns);
  for (int64_t n = 0; n < rows; n += kF8Block) {
    const int64_t count = std::min(kF8Block, rows - n);
    for (int64_t k = 0; k < columns; k += kF8Block) {
      float most = 0;
      for (int64_t r = n; r < n + count; ++r) {
        for (int64_t i = k; i < k + kF8Block; ++i) {
          const float magnitude = std::abs(values[static_cast<size_t>(r * columns + i)]);
          most = most < magnitude ? magnitude : most;
        }
      }
      const bool zero = most < kSmallest;
      const float scale = zero ? 0.0f : most / kMostE4M3, inverse = zero ? 0.0f : kMostE4M3 / most;
      for (int64_t r = n; r < n + count; ++r) {
        std::byte* block = to + r * row + k / kF8Block * kBlockBytes;
        for (int64_t i = 0; i < kF8Block; ++i) {
          const float value = values[static_cast<size_t>(r * columns + k + i)];
          block[i] = static_cast<std::byte>(float_to_e4m3(value * inverse));
        }
        std::memcpy(block + kF8Block, &scale, sizeof scale);
      }
    }
  }
}

void quantize_f8_of_bf16(std::span<const float> values, int64_t rows, int64_t columns, std::byte* to) {
  std::vector<float> rounded(values.size());
  std::ranges::transform(values, rounded.begin(),
                         [](float value) { return bf16_to_float(float_to_bf16(value)); });
  quantize_f8(rounded, rows, columns, to);
}

bool has_square_scales(const std::byte* bytes, int64_t rows, int64_t columns) {
  const int64_t row = row_bytes(DType::kF8_128, columns);
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte *own = bytes + r * row, *first = bytes + r / kF8Block * kF8Block * row;
    for (int64_t at = kF8Block; at < row; at += kBlockBytes)
      if (std::memcmp(own + at, first + at, sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace qiao
