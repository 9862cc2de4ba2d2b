// The oracle is PyTorch's float8_e4m3fn (golden/make_fp8.py).
#include "tensor/fp8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "base/file.h"
#include "tensor/dequantize.h"
#include "tensor/half.h"

namespace qiao {
namespace {

class Golden {
 public:
  Golden() : file_(read_file(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "fp8_numbers.bin")) {}
  template <typename T>
  std::vector<T> take(size_t count) {
    std::vector<T> values(count);
    EXPECT_LE(at_ + count * sizeof(T), file_.size());
    std::memcpy(values.data(), file_.data() + at_, count * sizeof(T));
    at_ += count * sizeof(T);
    return values;
  }
  uint32_t number() { return take<uint32_t>(1).front(); }
  bool at_end() const { return at_ == file_.size(); }

 private:
  std::string file_;
  size_t at_ = 0;
};

TEST(Fp8Test, AgreesWithPyTorchToTheBit) {
  Golden golden;
  const std::vector<float> every = golden.take<float>(256);
  for (size_t i = 0; i < every.size(); ++i) {
    const float value = e4m3_to_float(static_cast<uint8_t>(i));
    if (std::isnan(every[i])) {
      EXPECT_TRUE(std::isnan(value)) << i;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(every[i])) << i;
    }
  }
  const uint32_t count = golden.number();
  const std::vector<float> floats = golden.take<float>(count);
  const std::vector<uint8_t> bytes = golden.take<uint8_t>(count);
  for (size_t i = 0; i < count; ++i) EXPECT_EQ(float_to_e4m3(floats[i]), bytes[i]) << floats[i];

  const auto rows = static_cast<int64_t>(golden.number()), columns = static_cast<int64_t>(golden.number());
  const std::vector<float> matrix = golden.take<float>(static_cast<size_t>(rows * columns));
  const std::vector<std::byte> numbers = golden.take<std::byte>(matrix.size());
  F8Scales scales{.values = {}, .block_rows = 128, .block_columns = 128, .stride = columns / 128};
  scales.values = golden.take<float>(static_cast<size_t>((rows + 127) / 128 * scales.stride));
  EXPECT_TRUE(golden.at_end());
  std::vector<std::byte> made(static_cast<size_t>(rows * row_bytes(DType::kF8_128, columns)));
  quantize_f8(matrix, rows, columns, made.data());
  std::vector<std::byte> joined(made.size());
  join_f8(numbers.data(), scales, 0, rows, columns, joined.data());
  EXPECT_EQ(made, joined);
}

TEST(Fp8Test, NaNStaysAndInfinityIsTheLargest) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(float_to_e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
  EXPECT_EQ(float_to_e4m3(kInfinity), 0x7e);
  EXPECT_EQ(float_to_e4m3(-kInfinity), 0xfe);
}

// Scales of every kind give the values that number times scale is.
TEST(Fp8Test, JoinsScalesOfEveryKind) {
  constexpr int64_t kRows = 130, kColumns = 256;
  std::vector<std::byte> numbers(kRows * kColumns);
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<std::byte>((i * 37 + i / 251) % 127 + (i % 3 == 0 ? 128 : 0));
  const auto values = [](int64_t count) {
    std::vector<float> scales(static_cast<size_t>(count));
    for (size_t i = 0; i < scales.size(); ++i) scales[i] = 0.1f + 0.37f * static_cast<float>(i);
    return scales;
  };
  for (const F8Scales& scales :
       {F8Scales{values(1), kRows, kColumns, 1}, F8Scales{values(kRows), 1, kColumns, 1},
        F8Scales{values(4), 128, 128, 2}, F8Scales{values(6), 64, 128, 2}}) {
    ASSERT_TRUE(scales.fit_f8_128(kColumns));
    std::vector<std::byte> rows(static_cast<size_t>((kRows - 3) * row_bytes(DType::kF8_128, kColumns)));
    join_f8(numbers.data(), scales, 3, kRows - 3, kColumns, rows.data());
    std::vector<float> joined((kRows - 3) * kColumns), plain(joined.size());
    dequantize(DType::kF8_128, rows.data(), (kRows - 3) * kColumns, joined.data());
    dequantize_f8(numbers.data(), scales, 3, kRows - 3, kColumns, plain.data());
    EXPECT_EQ(joined, plain);
    for (int64_t n = 3; n < kRows; n += 31) {
      for (int64_t k = 0; k < kColumns; ++k) {
        const float scale = scales.values[static_cast<size_t>(n / scales.block_rows * scales.stride +
                                                              k / scales.block_columns)];
        const float number =
            e4m3_to_float(static_cast<uint8_t>(numbers[static_cast<size_t>(n * kColumns + k)]));
        ASSERT_EQ(plain[static_cast<size_t>((n - 3) * kColumns + k)], number * scale) << n << " " << k;
      }
    }
  }
  EXPECT_FALSE((F8Scales{values(8), 128, 64, 4}).fit_f8_128(kColumns));
  EXPECT_FALSE((F8Scales{values(1), 128, 128, 1}).fit_f8_128(192));
}

TEST(Fp8Test, QuantizedErrsByHalfAStepAtMost) {
  std::vector<float> values(3 * 128);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i)) * 3.0f;
  values[5] = 1e-38f;
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(DType::kF8_128, 3 * 128)));
  quantize_f8(values, 3, 128, bytes.data());
  std::vector<float> back(values.size());
  dequantize(DType::kF8_128, bytes.data(), 3 * 128, back.data());
  const float most = *std::max_element(values.begin(), values.end());
  for (size_t i = 0; i < values.size(); ++i)  // half of 2^-3 of it, or of the least step, and some roundings
    EXPECT_LE(std::abs(back[i] - values[i]), std::abs(values[i]) * 0x1.001p-4f + most / 448 * 0x1.001p-10f)
        << i;

  std::fill(values.begin(), values.end(), 1e-38f);  // too small for an inverse: zeros
  quantize_f8(values, 3, 128, bytes.data());
  dequantize(DType::kF8_128, bytes.data(), 3 * 128, back.data());
  for (const float value : back) EXPECT_EQ(value, 0.0f);

  values[7] = std::numeric_limits<float>::quiet_NaN();
  quantize_f8(values, 3, 128, bytes.data());
  dequantize(DType::kF8_128, bytes.data(), 3 * 128, back.data());
  EXPECT_TRUE(std::isnan(back[7]));
  EXPECT_FALSE(std::isnan(back[8]));
}

}  // namespace
}  // namespace qiao
