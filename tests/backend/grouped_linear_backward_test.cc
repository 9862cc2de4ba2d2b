// The way back of grouped_linear: by hand, against differences in float64, and what it refuses.
#include <random>

#include "backend/op_test.h"
#include "backend/ops/linear.h"
#include "tensor/half.h"

namespace qiao {
namespace {

class GroupedLinearBackwardTest : public ::testing::Test {
 protected:
  GroupedLinearBackwardTest() {
    op_.dy = dy_, op_.x = x_, op_.weight = weight_.get(), op_.counts = counts_, op_.dx = dx_, op_.dw = dw_;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  // Experts 0 and 2 have a row and two; expert 1 has none.
  std::unique_ptr<Weight> weight_ = weight_of(*chip_, 2, 2, {1, 2, 3, 4, 9, 9, 9, 9, 10, 20, 30, 40}, 3);
  Ints counts_{{3}, {1, 0, 2}};
  Floats dy_{{3, 2}, {1, 10, 1, -1, 0, 2}};
  Floats x_{{3, 2}, {5, 6, 1, 2, 3, 4}};
  Floats dx_{{3, 2}, {1000, 1000, 1000, 1000, 1000, 1000}};
  Floats dw_{{3, 2, 2}, {0, 0, 0, 0, 7, 7, 7, 7, 0, 1, 0, 0}};
  GroupedLinearBackward op_;
};

TEST_F(GroupedLinearBackwardTest, AnExampleByHand) {
  chip_->grouped_linear_backward(op_);
  // 1 + 30, 2 + 40; 10 - 30, 20 - 40; 60, 80
  EXPECT_THAT(dx_.list(), ::testing::ElementsAre(31, 42, -20, -20, 60, 80));
  // [1, 10] by [5, 6]; what was there; [1, -1] by [1, 2] and [0, 2] by [3, 4]
  EXPECT_THAT(dw_.list(), ::testing::ElementsAre(5, 6, 50, 60, 7, 7, 7, 7, 1, 3, 5, 6));
}

TEST_F(GroupedLinearBackwardTest, AddsToDxWhereAsked) {
  op_.add_dx = true, op_.dw = {}, op_.x = {};
  chip_->grouped_linear_backward(op_);
  EXPECT_THAT(dx_.list(), ::testing::ElementsAre(1031, 1042, 980, 980, 1060, 1080));
  EXPECT_EQ(dw_.data()[4], 7);
}

TEST_F(GroupedLinearBackwardTest, NoRowsChangeNoSums) {
  std::fill_n(counts_.data(), 3, 0);
  op_.dy = op_.dy.slice(0, 0), op_.x = op_.x.slice(0, 0), op_.dx = op_.dx.slice(0, 0);
  chip_->grouped_linear_backward(op_);
  EXPECT_THAT(dw_.list(), ::testing::ElementsAre(0, 0, 0, 0, 7, 7, 7, 7, 0, 1, 0, 0));
}

// loss = sum of c * y^2, y as grouped_linear computes it, in float64.
TEST_F(GroupedLinearBackwardTest, IsTheDerivativeOfGroupedLinear) {
  constexpr size_t kExperts = 3, kRows = 4, kColumns = 5;
  const std::vector<size_t> expert_of = {0, 0, 2, 2, 2};
  const size_t tokens = expert_of.size();
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  const auto some = [&](size_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = normal(random);
    return values;
  };
  const std::vector<float> c = some(tokens * kRows), x = some(tokens * kColumns),
                           w = some(kExperts * kRows * kColumns);
  const auto y_of = [&](const std::vector<double>& x_at, const std::vector<double>& w_at) {
    std::vector<double> y(tokens * kRows);
    for (size_t t = 0; t < tokens; ++t)
      for (size_t n = 0; n < kRows; ++n)
        for (size_t k = 0; k < kColumns; ++k)
          y[t * kRows + n] += x_at[t * kColumns + k] * w_at[(expert_of[t] * kRows + n) * kColumns + k];
    return y;
  };
  const auto loss = [&](const std::vector<double>& x_at, const std::vector<double>& w_at) {
    double sum = 0;
    const std::vector<double> y = y_of(x_at, w_at);
    for (size_t i = 0; i < y.size(); ++i) sum += static_cast<double>(c[i]) * y[i] * y[i];
    return sum;
  };
  const std::vector<double> xs = as_doubles(x), ws = as_doubles(w), ys = y_of(xs, ws);
  Floats dy({5, 4}), x_tensor({5, 5}, x), dx({5, 5}), dw({3, 4, 5});
  const Ints counts({3}, {2, 0, 3});
  for (size_t i = 0; i < ys.size(); ++i)
    dy.data()[i] = static_cast<float>(2 * static_cast<double>(c[i]) * ys[i]);
  const auto weight = weight_of(*chip_, 4, 5, w, 3);
  GroupedLinearBackward op;
  op.dy = dy, op.x = x_tensor, op.weight = weight.get(), op.counts = counts, op.dx = dx, op.dw = dw;
  chip_->grouped_linear_backward(op);
  for (size_t i = 0; i < x.size(); ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(at, ws); }, xs, i);
    EXPECT_NEAR(dx.data()[i], slope, 4e-6 * std::max(1.0, std::abs(slope))) << i;
  }
  for (size_t i = 0; i < w.size(); ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(xs, at); }, ws, i);
    EXPECT_NEAR(dw.data()[i], slope, 4e-6 * std::max(1.0, std::abs(slope))) << i;
  }
}

TEST_F(GroupedLinearBackwardTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 2 * 2 * 3 * 2 * 2);
  EXPECT_EQ(op_.bytes(), 4 * (6 + 3 + 2 * 12 + 6 + 12 + 6));
  op_.dw = {}, op_.x = {}, op_.add_dx = true;
  EXPECT_EQ(op_.flops(), 2 * 3 * 2 * 2);
  EXPECT_EQ(op_.bytes(), 4 * (6 + 3 + 12 + 2 * 6));
}

TEST_F(GroupedLinearBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  GroupedLinearBackward op = op_;
  op.weight = nullptr;
  EXPECT_EQ(refusal(op), "grouped_linear_backward: weight is absent");
  op = op_, op.dy = {};
  EXPECT_EQ(refusal(op), "grouped_linear_backward: dy is absent");
  op = op_, op.dy = reshaped(dy_, {6, 1});
  EXPECT_EQ(refusal(op), "grouped_linear_backward: dy is F32[6, 1], expected F32[6, 2]");
  op = op_, op.counts = reshaped(counts_, {2});
  EXPECT_EQ(refusal(op), "grouped_linear_backward: counts is I32[2], expected I32[3]");
  op = op_, op.x = {};
  EXPECT_EQ(refusal(op), "grouped_linear_backward: x is absent, expected F32[3, 2]");
  op = op_, op.x = reshaped(x_, {2, 3});
  EXPECT_EQ(refusal(op), "grouped_linear_backward: x is F32[2, 3], expected F32[3, 2]");
  op = op_, op.dx = reshaped(dx_, {6});
  EXPECT_EQ(refusal(op), "grouped_linear_backward: dx is F32[6], expected F32[3, 2]");
  op = op_, op.dx = {}, op.add_dx = true;
  EXPECT_EQ(refusal(op), "grouped_linear_backward: add_dx is set, but dx is absent");
  op = op_, op.compute = Compute::kBF16;
  EXPECT_EQ(refusal(op),
            "grouped_linear_backward: compute is BF16, but weight rows from 0 are F32, expected BF16");
  op = op_, op.dw = reshaped(dw_, {6, 2});
  EXPECT_EQ(refusal(op), "grouped_linear_backward: dw is F32[6, 2], expected F32[3, 2, 2]");
}

TEST_F(GroupedLinearBackwardTest, InBF16RoundsWhatItMultiplies) {
  const std::vector<uint16_t> rows = {float_to_bf16(7), float_to_bf16(2)};  // of two experts
  WeightSource source;
  source.experts = 2, source.columns = 1;
  for (const uint16_t& row : rows)
    source.parts.push_back({DType::kBF16, 1, reinterpret_cast<const std::byte*>(&row)});
  const auto weight = chip_->make_weight(source);
  Floats dy({2, 1}, {1 + 0x1p-8f, 1 + 0x3p-8f}), x({2, 1}, {1, 2 + 0x1p-7f}), dx({2, 1}), dw({2, 1, 1});
  const Ints counts({2}, {0, 2});
  GroupedLinearBackward op;
  op.dy = dy, op.x = x, op.weight = weight.get(), op.counts = counts, op.dx = dx, op.dw = dw;
  op.compute = Compute::kBF16;
  chip_->grouped_linear_backward(op);
  EXPECT_THAT(dx.list(), ::testing::ElementsAre(2, 2 + 0x1p-5f));
  EXPECT_THAT(dw.list(), ::testing::ElementsAre(0, 1 + 2 * (1 + 0x1p-6f)));
}

TEST_F(GroupedLinearBackwardTest, RefusesOverlap) {
  const auto overlaps = [&](Tensor GroupedLinearBackward::*result, Tensor GroupedLinearBackward::*other) {
    GroupedLinearBackward op = op_;
    (op.*result).data = (op.*other).data;
    return refusal(op);
  };
  EXPECT_EQ(overlaps(&GroupedLinearBackward::dx, &GroupedLinearBackward::dy),
            "grouped_linear_backward: dx F32[3, 2] overlaps dy F32[3, 2]");
  EXPECT_EQ(overlaps(&GroupedLinearBackward::dx, &GroupedLinearBackward::x),
            "grouped_linear_backward: dx F32[3, 2] overlaps x F32[3, 2]");
  EXPECT_EQ(overlaps(&GroupedLinearBackward::dx, &GroupedLinearBackward::counts),
            "grouped_linear_backward: dx F32[3, 2] overlaps counts I32[3]");
  EXPECT_EQ(overlaps(&GroupedLinearBackward::dx, &GroupedLinearBackward::dw),
            "grouped_linear_backward: dx F32[3, 2] overlaps dw F32[3, 2, 2]");
  EXPECT_EQ(overlaps(&GroupedLinearBackward::dw, &GroupedLinearBackward::dy),
            "grouped_linear_backward: dw F32[3, 2, 2] overlaps dy F32[3, 2]");
  EXPECT_EQ(overlaps(&GroupedLinearBackward::dw, &GroupedLinearBackward::x),
            "grouped_linear_backward: dw F32[3, 2, 2] overlaps x F32[3, 2]");
  EXPECT_EQ(overlaps(&GroupedLinearBackward::dw, &GroupedLinearBackward::counts),
            "grouped_linear_backward: dw F32[3, 2, 2] overlaps counts I32[3]");
  for (Tensor GroupedLinearBackward::*other :
       {&GroupedLinearBackward::dy, &GroupedLinearBackward::x, &GroupedLinearBackward::counts,
        &GroupedLinearBackward::dx, &GroupedLinearBackward::dw}) {
    GroupedLinearBackward op = op_;
    op.workspace = Tensor((op.*other).data, DType::kU8, {8});
    EXPECT_THAT(refusal(op), ::testing::StartsWith("grouped_linear_backward: workspace U8[8] overlaps "));
  }
}

}  // namespace
}  // namespace qiao
