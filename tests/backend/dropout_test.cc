#include "backend/ops/dropout.h"

#include <numeric>

#include "backend/op_test.h"
#include "backend/philox.h"

namespace qiao {
namespace {

class DropoutTest : public ::testing::Test {
 protected:
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats x_{{2, 5}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}};
  Floats y_{{2, 5}};
  Dropout op_{.x = x_, .y = y_, .probability = 0.5f, .seed = 7, .stream = 3, .first_row = 10};
};

TEST_F(DropoutTest, DropsByItsCountersWords) {
  chip_->dropout(op_);
  for (uint32_t t = 0; t < 2; ++t) {
    for (uint32_t k = 0; k < 5; ++k) {
      const bool dropped = philox4x32({k / 4, 10 + t, 3, 0}, uint64_t{7})[k % 4] < 0x80000000u;
      EXPECT_EQ(y_.data()[t * 5 + k], dropped ? 0 : 2 * x_.data()[t * 5 + k]);
    }
  }
}

TEST_F(DropoutTest, ARowsMaskDoesNotDependOnTheBatch) {
  chip_->dropout(op_);
  const std::vector<float> whole = y_.list();
  op_.x = op_.x.slice(1, 1), op_.y = op_.y.slice(1, 1), op_.first_row = 11;
  chip_->dropout(op_);
  EXPECT_EQ(y_.list(), whole);
}

TEST_F(DropoutTest, APartOfTheColumnsHasThatPartOfTheMask) {
  std::vector<float> values(2 * 150);
  std::iota(values.begin(), values.end(), 1.0f);
  const Floats x({2, 150}, values), whole({2, 150});
  op_.x = x, op_.y = whole;
  chip_->dropout(op_);
  for (const int64_t first : {1, 2, 3, 4, 30, 66}) {
    Floats part({2, 150 - first});
    op_.x = x.tensor().narrow(1, first, 150 - first), op_.y = part;
    op_.first_column = static_cast<uint32_t>(first);
    chip_->dropout(op_);
    for (int64_t t = 0; t < 2; ++t)
      for (int64_t k = first; k < 150; ++k)
        EXPECT_EQ(part.data()[t * (150 - first) + k - first], whole.data()[t * 150 + k]) << first << " " << k;
  }
}

TEST_F(DropoutTest, AddsAndKeepsTheMean) {
  op_.add = true;
  chip_->dropout(op_);
  const std::vector<float> once = y_.list();
  chip_->dropout(op_);
  for (size_t i = 0; i < once.size(); ++i) EXPECT_EQ(y_.list()[i], 2 * once[i]);
  Floats ones({100, 100}, std::vector<float>(10000, 1.0f)), out({100, 100});
  chip_->dropout({.x = ones, .y = out, .probability = 0.25f, .seed = 1});
  const std::vector<float> kept = out.list();
  // Four deviations of the mean of 10000.
  EXPECT_NEAR(std::accumulate(kept.begin(), kept.end(), 0.0) / 10000, 1, 4 * std::sqrt(0.25 / 0.75) / 100);
}

TEST_F(DropoutTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  Dropout op = op_;
  op.probability = 1;
  EXPECT_EQ(refusal(op), "dropout: probability is 1, expected 0 to below 1");
  op = op_, op.x = reshaped(x_, {5, 2});
  EXPECT_EQ(refusal(op), "dropout: x is F32[5, 2], expected F32[2, 5]");
  op = op_, op.y = op_.x;
  EXPECT_EQ(refusal(op), "");
  op = op_, op.first_row = UINT32_MAX - 1;
  EXPECT_EQ(refusal(op), "dropout: rows 4294967294 to 4294967296 of a mask, expected rows below 2^32");
  op = op_, op.first_column = UINT32_MAX - 4;
  EXPECT_EQ(refusal(op), "dropout: columns 4294967291 to 4294967296 of a mask, expected columns below 2^32");
}

}  // namespace
}  // namespace qiao
