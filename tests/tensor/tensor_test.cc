#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>

namespace qiao {
namespace {

// The sizes that the format's specification gives each type: elements and bytes a block.
TEST(DTypeTest, SizesAreTheSpecifications) {
  struct Row {
    DType dtype;
    const char* name;
    int elements, bytes;
  };
  const Row rows[] = {
      {DType::kF32, "F32", 1, 4},
      {DType::kF16, "F16", 1, 2},
      {DType::kBF16, "BF16", 1, 2},
      {DType::kF64, "F64", 1, 8},
      {DType::kI8, "I8", 1, 1},
      {DType::kI16, "I16", 1, 2},
      {DType::kI32, "I32", 1, 4},
      {DType::kI64, "I64", 1, 8},
      {DType::kU8, "U8", 1, 1},
      {DType::kQ4_0, "Q4_0", 32, 18},
      {DType::kQ4_1, "Q4_1", 32, 20},
      {DType::kQ5_0, "Q5_0", 32, 22},
      {DType::kQ5_1, "Q5_1", 32, 24},
      {DType::kQ8_0, "Q8_0", 32, 34},
      {DType::kQ2_K, "Q2_K", 256, 84},
      {DType::kQ3_K, "Q3_K", 256, 110},
      {DType::kQ4_K, "Q4_K", 256, 144},
      {DType::kQ5_K, "Q5_K", 256, 176},
      {DType::kQ6_K, "Q6_K", 256, 210},
      {DType::kIQ4_NL, "IQ4_NL", 32, 18},
      {DType::kIQ4_XS, "IQ4_XS", 256, 136},
      {DType::kMXFP4, "MXFP4", 32, 17},
      {DType::kF8_128, "F8_128", 128, 132},
      {DType::kF8_E4M3, "F8_E4M3", 1, 1},
  };
  ASSERT_EQ(std::size(rows), static_cast<size_t>(kDTypeCount));
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    EXPECT_EQ(traits(row.dtype).name, row.name);
    EXPECT_EQ(traits(row.dtype).block_elements, row.elements);
    EXPECT_EQ(traits(row.dtype).block_bytes, row.bytes);
    EXPECT_EQ(traits(row.dtype).quantized, row.elements > 1);
    EXPECT_EQ(dtype_named(row.name), row.dtype);
    EXPECT_EQ(row_bytes(row.dtype, 512), 512 / row.elements * row.bytes);
    EXPECT_EQ(row_bytes(row.dtype, 0), 0);
  }
}

TEST(DTypeTest, NamesAreFoundInAnyCase) {
  EXPECT_EQ(dtype_named("q4_k"), DType::kQ4_K);
  EXPECT_EQ(dtype_named("bf16"), DType::kBF16);
  EXPECT_EQ(dtype_named("Q4_K_M"), std::nullopt);
  EXPECT_EQ(dtype_named("Q4"), std::nullopt);
  EXPECT_EQ(dtype_named(""), std::nullopt);
}

class TensorTest : public ::testing::Test {
 protected:
  TensorTest() { std::iota(memory.begin(), memory.end(), 0.0f); }
  // The element at (i, j, k), through the strides.
  static float at(const Tensor& t, int64_t i, int64_t j = 0, int64_t k = 0) {
    return t.as<float>()[i * t.stride[0] + j * t.stride[1] + k * t.stride[2]];
  }
  std::array<float, 2 * 3 * 4> memory;
  Tensor tensor{memory.data(), DType::kF32, {2, 3, 4}};
};

TEST_F(TensorTest, IsRowMajor) {
  EXPECT_TRUE(tensor.present());
  EXPECT_EQ(tensor.elements(), 24);
  EXPECT_EQ(tensor.bytes(), 96);
  EXPECT_TRUE(tensor.contiguous());
  EXPECT_EQ(at(tensor, 1, 2, 3), 23.0f);
  EXPECT_EQ(to_string(tensor), "F32[2, 3, 4]");
}

TEST_F(TensorTest, ADefaultOneIsAbsent) {
  const Tensor none;
  EXPECT_FALSE(none.present());
  EXPECT_EQ(none.elements(), 0);
  EXPECT_EQ(none.bytes(), 0);
}

TEST_F(TensorTest, SlicesAndNarrowsShareTheMemory) {
  const Tensor second = tensor.slice(1, 1);
  EXPECT_EQ(second.elements(), 12);
  EXPECT_EQ(at(second, 0, 0, 0), 12.0f);
  EXPECT_TRUE(second.contiguous());
  const Tensor columns = tensor.narrow(2, 1, 2);
  EXPECT_EQ(at(columns, 1, 2, 1), 22.0f);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_TRUE(columns.rows_contiguous());
  const Tensor rows = tensor.narrow(1, 2, 1);
  EXPECT_EQ(at(rows, 1, 0, 3), 23.0f);
  EXPECT_FALSE(rows.contiguous());
  EXPECT_EQ(tensor.narrow(1, 3, 0).elements(), 0);
}

TEST_F(TensorTest, SplitsTheLastDimension) {
  const Tensor split = tensor.split_last(2);
  EXPECT_EQ(to_string(split), "F32[2, 3, 2, 2]");
  EXPECT_TRUE(split.contiguous());
  EXPECT_EQ(split.as<float>()[1 * split.stride[0] + 2 * split.stride[1] + 1 * split.stride[2] + 1], 23.0f);
  const Tensor of_part = tensor.narrow(2, 0, 2).split_last(2);
  EXPECT_EQ(of_part.shape[3], 1);
  EXPECT_EQ(of_part.as<float>()[1 * of_part.stride[0] + 1 * of_part.stride[2]], 13.0f);
}

TEST_F(TensorTest, StridesOfDimensionsOfOneDoNotMatter) {
  Tensor odd = tensor.slice(0, 1);
  odd.stride[0] = 999;
  EXPECT_TRUE(odd.contiguous());
  Tensor column = tensor.narrow(2, 3, 1);
  column.stride[2] = 7;
  EXPECT_TRUE(column.rows_contiguous());
}

TEST_F(TensorTest, BrokenRulesOfOursStopTheProgram) {
  EXPECT_DEATH((void)tensor.narrow(0, 1, 2), "does not hold");
  EXPECT_DEATH((void)tensor.narrow(3, 0, 1), "does not hold");
  EXPECT_DEATH((void)tensor.narrow(0, -1, 1), "does not hold");
  EXPECT_DEATH((void)tensor.split_last(3), "does not hold");
  EXPECT_DEATH((void)row_bytes(DType::kQ4_0, 33), "does not hold");
}

}  // namespace
}  // namespace qiao
