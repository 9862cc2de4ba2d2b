#include "backend/ops/rope.h"

#include <cmath>

#include "backend/op_test.h"

namespace qiao {
namespace {

class RopeTest : public ::testing::Test {
 protected:
  RopeTest() { op_.q = q_, op_.k = k_, op_.positions = positions_, op_.inverse_frequencies = frequencies_; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats q_{{1, 1, 5}, {1, 2, 3, 4, 5}};
  Floats k_{{1, 1, 5}, {1, 0, 0, 0, 9}};
  Ints positions_{{1}, std::vector<int32_t>{1}};
  Floats frequencies_{{2}, {static_cast<float>(M_PI / 2), static_cast<float>(M_PI)}};
  Rope op_;
};

TEST_F(RopeTest, HalvesByHand) {
  op_.scale = 2;
  chip_->rope(op_);
  // Pairs (1, 3) by a quarter turn and (2, 4) by a half, doubled; the fifth stays.
  const std::vector<float> q = q_.list();
  EXPECT_NEAR(q[0], -6, 1e-6);
  EXPECT_NEAR(q[2], 2, 1e-6);
  EXPECT_NEAR(q[1], -4, 1e-6);
  EXPECT_NEAR(q[3], -8, 1e-6);
  EXPECT_EQ(q[4], 5);
  EXPECT_NEAR(k_.data()[2], 2, 1e-6);
  EXPECT_EQ(k_.data()[4], 9);
}

TEST_F(RopeTest, InterleavedByHand) {
  op_.layout = Rope::Layout::kInterleaved;
  chip_->rope(op_);
  const std::vector<float> q = q_.list();  // pairs (1, 2) and (3, 4)
  EXPECT_NEAR(q[0], -2, 1e-6);
  EXPECT_NEAR(q[1], 1, 1e-6);
  EXPECT_NEAR(q[2], -3, 1e-6);
  EXPECT_NEAR(q[3], -4, 1e-6);
}

TEST_F(RopeTest, TheAngleIsAProductInF32) {
  // 16777217 is no float: position 2^24 + 1 turns as 2^24 does.
  positions_.data()[0] = (1 << 24) + 1;
  frequencies_.data()[0] = 1.0f;
  chip_->rope(op_);
  EXPECT_NEAR(k_.data()[0], std::cos(16777216.0), 1e-6);
}

TEST_F(RopeTest, KeysMayBeAbsent) {
  op_.k = {};
  chip_->rope(op_);
  EXPECT_NEAR(q_.data()[0], -3, 1e-6);
  EXPECT_EQ(k_.data()[0], 1);
}

TEST_F(RopeTest, InverseTurnsBackAndStillScales) {
  op_.scale = 2, op_.inverse = true;
  chip_->rope(op_);
  // Pairs (1, 3) by a quarter turn back and (2, 4) by a half, doubled.
  const std::vector<float> q = q_.list();
  EXPECT_NEAR(q[0], 6, 1e-6);
  EXPECT_NEAR(q[2], -2, 1e-6);
  EXPECT_NEAR(q[1], -4, 1e-6);
  EXPECT_NEAR(q[3], -8, 1e-6);
  EXPECT_EQ(q[4], 5);
}

TEST_F(RopeTest, InverseIsTheDerivative) {
  const std::vector<float> x = {1, -2, 3, 0.5f, 5}, c = {0.25f, 1, -2, 3, 1.5f};
  frequencies_.data()[0] = 0.7f, frequencies_.data()[1] = 0.1f;
  positions_.data()[0] = 3;
  for (const Rope::Layout layout : {Rope::Layout::kHalf, Rope::Layout::kInterleaved}) {
    const bool half = layout == Rope::Layout::kHalf;
    const auto loss = [&](const std::vector<double>& at) {
      double sum = c[4] * at[4];
      for (size_t i = 0; i < 2; ++i) {
        const size_t first = half ? i : 2 * i, second = half ? i + 2 : 2 * i + 1;
        const double angle = 3.0f * frequencies_.data()[i];
        sum += 1.5 * c[first] * (at[first] * std::cos(angle) - at[second] * std::sin(angle));
        sum += 1.5 * c[second] * (at[second] * std::cos(angle) + at[first] * std::sin(angle));
      }
      return sum;
    };
    std::copy(c.begin(), c.end(), q_.data());
    op_.k = {}, op_.layout = layout, op_.scale = 1.5f, op_.inverse = true;
    chip_->rope(op_);
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_NEAR(q_.data()[i], difference_quotient(loss, as_doubles(x), i), 1e-6) << i;
    }
  }
}

TEST_F(RopeTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  Rope op = op_;
  op.q = reshaped(q_, {1, 5});
  EXPECT_EQ(refusal(op), "rope: q is F32[1, 5], expected 3 dimensions");
  op = op_, op.k = reshaped(k_, {1, 5, 1});
  EXPECT_EQ(refusal(op), "rope: k is F32[1, 5, 1], expected F32[1, 5, 5]");
  op = op_, op.positions.dtype = DType::kI64;
  EXPECT_EQ(refusal(op), "rope: positions is I64[1], expected I32[1]");
  Ints two({2});
  op = op_, op.positions = two;
  EXPECT_EQ(refusal(op), "rope: positions is I32[2], expected I32[1]");
  Floats three({3});
  op = op_, op.inverse_frequencies = three;
  EXPECT_EQ(refusal(op), "rope: inverse_frequencies is F32[3], expected from 1 to 2 for q F32[1, 1, 5]");
  op = op_, op.inverse_frequencies = op.inverse_frequencies.slice(0, 0);
  EXPECT_THAT(refusal(op), ::testing::HasSubstr("inverse_frequencies is F32[0], expected from 1"));
  op = op_, op.scale = NAN;
  EXPECT_EQ(refusal(op), "rope: scale is not finite");
  op = op_, op.k = q_;
  EXPECT_EQ(refusal(op), "rope: q F32[1, 1, 5] overlaps k F32[1, 1, 5]");
  op = op_, op.inverse_frequencies = reshaped(q_, {2});
  EXPECT_EQ(refusal(op), "rope: q F32[1, 1, 5] overlaps inverse_frequencies F32[2]");
}

TEST_F(RopeTest, QueriesAndKeysInsideOneProjection) {
  Floats fused({3, 4, 4});
  Ints positions({3});
  op_.q = fused.tensor().narrow(1, 0, 2), op_.k = fused.tensor().narrow(1, 2, 1), op_.positions = positions;
  EXPECT_EQ(refusal(op_), "");
  op_.k = fused.tensor().narrow(1, 1, 2);
  EXPECT_EQ(refusal(op_), "rope: q F32[3, 2, 4] overlaps k F32[3, 2, 4]");
}

}  // namespace
}  // namespace qiao
