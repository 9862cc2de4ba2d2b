#include "tensor/floats.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace qiao {
namespace {

TEST(FloatsTest, GoThroughEachDtypeAndRoundToNearestEven) {
  const std::vector<float> values = {1.0f, -2.5f, 65504.0f,
                                     1.00390625f};  // the last: half a step of BF16 over 1
  const auto through = [&](DType dtype) {
    std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, 4)) + 1);
    from_floats(values, dtype, bytes.data() + 1);  // of no alignment
    std::vector<float> back(4);
    to_floats(dtype, bytes.data() + 1, back);
    return back;
  };
  EXPECT_EQ(through(DType::kF32), values);
  EXPECT_EQ(through(DType::kF16), values);  // all of 11 bits
  EXPECT_EQ(through(DType::kBF16), (std::vector<float>{1.0f, -2.5f, 65536.0f, 1.0f}));
}

TEST(FloatsTest, KnowsWhichDtypesAreFloats) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) EXPECT_TRUE(is_dense_float(dtype));
  for (const DType dtype : {DType::kF64, DType::kI32, DType::kQ8_0}) EXPECT_FALSE(is_dense_float(dtype));
}

}  // namespace
}  // namespace qiao
