// The way back of linear: by hand, against differences in float64, and what it refuses.
#include <cmath>
#include <random>

#include "backend/op_test.h"
#include "backend/ops/linear.h"
#include "tensor/half.h"

namespace qiao {
namespace {

class LinearBackwardTest : public ::testing::Test {
 protected:
  LinearBackwardTest() {
    op_.dy = dy_, op_.x = x_, op_.weight = weight_.get(), op_.dx = dx_, op_.dw = dw_, op_.dbias = dbias_;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  std::unique_ptr<Weight> weight_ = weight_of(*chip_, 2, 3, {1, 2, 3, -1, 0, 4});
  Floats dy_{{2, 2}, {1, 10, -2, 0.5}};
  Floats x_{{2, 3}, {1, 10, 100, 0.5, 0, -1}};
  Floats dx_{{2, 3}, {1000, 1000, 1000, 1000, 1000, 1000}};
  Floats dw_{{2, 3}, {0, 0, 0, 7, 0, 0}};
  Floats dbias_{{2}, {0, 1}};
  LinearBackward op_;
};

TEST_F(LinearBackwardTest, AnExampleByHand) {
  chip_->linear_backward(op_);
  // dy W: 1 - 10, 2 + 0, 3 + 40; -2 - 0.5, -4, -6 + 2
  EXPECT_THAT(dx_.list(), ::testing::ElementsAre(-9, 2, 43, -2.5, -4, -4));
  // dy^T x: 1 - 1, 10, 100 + 2; 7 + 10 + 0.25, 100, 1000 - 0.5
  EXPECT_THAT(dw_.list(), ::testing::ElementsAre(0, 10, 102, 17.25, 100, 999.5));
  EXPECT_THAT(dbias_.list(), ::testing::ElementsAre(-1, 11.5));
}

TEST_F(LinearBackwardTest, AddsToDxWhereAsked) {
  op_.add_dx = true, op_.dw = {}, op_.x = {}, op_.dbias = {};
  chip_->linear_backward(op_);
  EXPECT_THAT(dx_.list(), ::testing::ElementsAre(991, 1002, 1043, 997.5, 996, 996));
  EXPECT_EQ(dw_.data()[3], 7);
}

TEST_F(LinearBackwardTest, NoRowsChangeNoSums) {
  op_.dy = op_.dy.slice(0, 0), op_.x = op_.x.slice(0, 0), op_.dx = op_.dx.slice(0, 0);
  chip_->linear_backward(op_);
  EXPECT_THAT(dw_.list(), ::testing::ElementsAre(0, 0, 0, 7, 0, 0));
  EXPECT_THAT(dbias_.list(), ::testing::ElementsAre(0, 1));
}

TEST_F(LinearBackwardTest, ReadsThroughAQuantizedWeight) {
  // One Q8_0 block a row: scale 1 with quants 1, 2, 3 and zeros; scale 0.5 with 4.
  std::vector<std::byte> blocks(68);
  const uint16_t one = float_to_f16(1.0f), half = float_to_f16(0.5f);
  std::memcpy(blocks.data(), &one, 2);
  std::memcpy(blocks.data() + 34, &half, 2);
  for (int i = 0; i < 3; ++i) blocks[static_cast<size_t>(2 + i)] = static_cast<std::byte>(i + 1);
  blocks[36] = std::byte{4};
  WeightSource source;
  source.columns = 32;
  source.parts = {{DType::kQ8_0, 2, blocks.data()}};
  const auto weight = chip_->make_weight(source);
  Floats dx({2, 32});
  LinearBackward op;
  op.dy = dy_, op.weight = weight.get(), op.dx = dx;
  chip_->linear_backward(op);
  EXPECT_EQ(dx.data()[0], 1 + 10 * 2);
  EXPECT_EQ(dx.data()[1], 2);
  EXPECT_EQ(dx.data()[32 + 2], -6);
  EXPECT_EQ(dx.data()[32 + 3], 0);
}

// loss = sum of c * (x W^T + b), as linear computes it, in float64.
TEST_F(LinearBackwardTest, IsTheDerivativeOfLinear) {
  constexpr size_t kTokens = 3, kRows = 4, kColumns = 5;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto some = [&](size_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = normal(random);
    return values;
  };
  const std::vector<float> c = some(kTokens * kRows), x = some(kTokens * kColumns),
                           w = some(kRows * kColumns), b = some(kRows);
  const auto loss = [&](const std::vector<double>& x_at, const std::vector<double>& w_at,
                        const std::vector<double>& b_at) {
    double sum = 0;
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t n = 0; n < kRows; ++n) {
        double y = b_at[n];
        for (size_t k = 0; k < kColumns; ++k) y += x_at[t * kColumns + k] * w_at[n * kColumns + k];
        sum += c[t * kRows + n] * y * y;  // not linear, so that dy depends on the point
      }
    }
    return sum;
  };
  // dy = d loss / d y = 2 c y, rounded to F32: an error of 2^-24 of each.
  Floats dy({3, 4}), x_tensor({3, 5}, x), dx({3, 5}), dw({4, 5}), dbias({4});
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t n = 0; n < kRows; ++n) {
      double y = b[n];
      for (size_t k = 0; k < kColumns; ++k)
        y += static_cast<double>(x[t * kColumns + k]) * w[n * kColumns + k];
      dy.data()[t * kRows + n] = static_cast<float>(2 * c[t * kRows + n] * y);
    }
  }
  const auto weight = weight_of(*chip_, 4, 5, w);
  LinearBackward op;
  op.dy = dy, op.x = x_tensor, op.weight = weight.get(), op.dx = dx, op.dw = dw, op.dbias = dbias;
  chip_->linear_backward(op);
  const auto xs = as_doubles(x), ws = as_doubles(w), bs = as_doubles(b);
  for (size_t i = 0; i < x.size(); ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(at, ws, bs); }, xs, i);
    EXPECT_NEAR(dx.data()[i], slope, 4e-6) << i;
  }
  for (size_t i = 0; i < w.size(); ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(xs, at, bs); }, ws, i);
    EXPECT_NEAR(dw.data()[i], slope, 4e-6) << i;
  }
  for (size_t i = 0; i < b.size(); ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(xs, ws, at); }, bs, i);
    EXPECT_NEAR(dbias.data()[i], slope, 4e-6) << i;
  }
}

// Between two numbers of BF16 (which are 2^-7 apart from 1 on) to the even one.
TEST_F(LinearBackwardTest, InBF16RoundsWhatItMultiplies) {
  const std::vector<uint16_t> rows = {float_to_bf16(1), float_to_bf16(2), float_to_bf16(-3),
                                      float_to_bf16(4)};
  WeightSource source;
  source.columns = 2;
  source.parts = {{DType::kBF16, 2, reinterpret_cast<const std::byte*>(rows.data())}};
  const auto weight = chip_->make_weight(source);
  Floats dy({1, 2}, {1 + 0x1p-8f, 1 + 0x3p-8f}), x({1, 2}, {2 + 0x1p-7f, 3}), dx({1, 2}), dw({2, 2}),
      dbias({2});
  LinearBackward op;
  op.dy = dy, op.x = x, op.weight = weight.get(), op.dx = dx, op.dw = dw, op.dbias = dbias;
  op.compute = Compute::kBF16;
  chip_->linear_backward(op);
  // dy becomes 1 and 1 + 2^-6, x 2 and 3; dbias is of dy as it was.
  EXPECT_THAT(dx.list(), ::testing::ElementsAre(1 - 3 * (1 + 0x1p-6f), 2 + 4 * (1 + 0x1p-6f)));
  EXPECT_THAT(dw.list(), ::testing::ElementsAre(2, 3, 2 + 0x1p-5f, 3 + 3 * 0x1p-6f));
  EXPECT_THAT(dbias.list(), ::testing::ElementsAre(1 + 0x1p-8f, 1 + 0x3p-8f));
}

// Two rows of 128: scale 2 with the number 1.5 in column 0, and -0.5 in column 1 of the second.
std::vector<std::byte> f8_rows(float second_scale) {
  std::vector<std::byte> rows(static_cast<size_t>(2 * row_bytes(DType::kF8_128, kF8Block)));
  const size_t row = rows.size() / 2;
  rows[0] = static_cast<std::byte>(float_to_e4m3(1.5f));
  rows[row + 1] = static_cast<std::byte>(float_to_e4m3(-0.5f));
  const float scale = 2;
  std::memcpy(rows.data() + kF8Block, &scale, sizeof scale);
  std::memcpy(rows.data() + row + kF8Block, &second_scale, sizeof second_scale);
  return rows;
}

std::unique_ptr<Weight> f8_weight(Backend& chip, float second_scale, bool square) {
  const std::vector<std::byte> rows = f8_rows(second_scale);
  WeightSource source;
  source.columns = kF8Block;
  source.parts = {{DType::kF8_128, 2, rows.data()}};
  source.square_scales = square;
  return chip.make_weight(source);
}

// dy's rows and, for dw, its columns and x's are of E4M3 with the scale max / 448.
TEST_F(LinearBackwardTest, InF8RoundsWhatItMultiplies) {
  const auto weight = f8_weight(*chip_, 2, true);
  // 448 has the scale 1; between 16 and 32 the numbers are 2 apart, from 1 on an eighth.
  Floats dy({2, 2}, {448, 21.5, 1.0625, 448}), x({2, kF8Block}), dx({2, kF8Block}), dw({2, kF8Block}),
      dbias({2});
  x.data()[0] = 448, x.data()[kF8Block] = -1.1875;
  LinearBackward op;
  op.dy = dy, op.x = x, op.weight = weight.get(), op.dx = dx, op.dw = dw, op.dbias = dbias;
  op.compute = Compute::kF8;
  chip_->linear_backward(op);
  EXPECT_EQ(dx.data()[0], 448 * 3);
  EXPECT_EQ(dx.data()[1], -22);       // 21.5 becomes 22
  EXPECT_EQ(dx.data()[kF8Block], 3);  // 1.0625, halfway, 1
  EXPECT_EQ(dx.data()[kF8Block + 1], -448);
  EXPECT_EQ(dw.data()[0], 448 * 448 + 1 * -1.25);  // columns: 448 and 1; 448 and -1.25
  EXPECT_EQ(dw.data()[kF8Block], 22 * 448 + 448 * -1.25);
  EXPECT_EQ(dw.data()[1], 0);
  EXPECT_THAT(dbias.list(), ::testing::ElementsAre(449.0625, 469.5));
}

TEST_F(LinearBackwardTest, InF8NeedsScalesOfSquares) {
  LinearBackward op;
  Floats dy({1, 2}), dx({1, kF8Block});
  const auto weight = f8_weight(*chip_, 3, false);
  op.dy = dy, op.weight = weight.get(), op.dx = dx, op.compute = Compute::kF8;
  EXPECT_EQ(refusal(op),
            "linear_backward: compute is F8, but the weight's scales are of single rows, expected them of "
            "128 x 128");
  op = op_, op.compute = Compute::kF8;
  EXPECT_EQ(refusal(op), "linear_backward: compute is F8, but weight rows from 0 are F32, expected F8_128");
  EXPECT_EQ(gradient_compute(Compute::kF8, *weight), Compute::kF32);
  EXPECT_EQ(gradient_compute(Compute::kF8, *f8_weight(*chip_, 2, true)), Compute::kF8);
  EXPECT_EQ(gradient_compute(Compute::kF32, *f8_weight(*chip_, 2, true)), Compute::kF32);
}

TEST_F(LinearBackwardTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 2 * 2 * 2 * 2 * 3 + 4);
  EXPECT_EQ(op_.bytes(), 4 * (4 + 6 + 6 + 6 + 2 * 6 + 2 * 2));
  op_.dw = {}, op_.x = {}, op_.dbias = {}, op_.add_dx = true;
  EXPECT_EQ(op_.flops(), 2 * 2 * 2 * 3);
  EXPECT_EQ(op_.bytes(), 4 * (4 + 6 + 2 * 6));
}

TEST_F(LinearBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  LinearBackward op = op_;
  op.weight = nullptr;
  EXPECT_EQ(refusal(op), "linear_backward: weight is absent");
  const auto experts = weight_of(*chip_, 2, 3, {}, 2);
  op = op_, op.weight = experts.get();
  EXPECT_EQ(refusal(op), "linear_backward: weight [2, 2, 3] has 2 experts, expected 1");
  op = op_, op.dy = {};
  EXPECT_EQ(refusal(op), "linear_backward: dy is absent");
  op = op_, op.dy = reshaped(dy_, {4, 1});
  EXPECT_EQ(refusal(op), "linear_backward: dy is F32[4, 1], expected F32[4, 2]");
  op = op_, op.x = {};
  EXPECT_EQ(refusal(op), "linear_backward: x is absent, expected F32[2, 3]");
  op = op_, op.x = reshaped(x_, {3, 2});
  EXPECT_EQ(refusal(op), "linear_backward: x is F32[3, 2], expected F32[2, 3]");
  op = op_, op.dx = reshaped(dx_, {6});
  EXPECT_EQ(refusal(op), "linear_backward: dx is F32[6], expected F32[2, 3]");
  op = op_, op.dx = {}, op.add_dx = true;
  EXPECT_EQ(refusal(op), "linear_backward: add_dx is set, but dx is absent");
  op = op_, op.dw = reshaped(dw_, {3, 2});
  EXPECT_EQ(refusal(op), "linear_backward: dw is F32[3, 2], expected F32[2, 3]");
  op = op_, op.dw.stride = {4, 1};
  EXPECT_EQ(refusal(op), "linear_backward: dw F32[2, 3] has strides [4, 1], expected it without gaps");
  op = op_, op.dbias = reshaped(dbias_, {1});
  EXPECT_EQ(refusal(op), "linear_backward: dbias is F32[1], expected F32[2]");
  op = op_, op.compute = Compute::kQ8;
  EXPECT_EQ(refusal(op), "linear_backward: compute is of the forward pass alone, expected F32, BF16 or F8");
  op = op_, op.compute = Compute::kBF16;
  EXPECT_EQ(refusal(op), "linear_backward: compute is BF16, but weight rows from 0 are F32, expected BF16");
  op = op_, op.dy.dtype = DType::kF16;
  EXPECT_EQ(refusal(op), "linear_backward: dy is F16[2, 2], expected F32[2, 2]");
}

TEST_F(LinearBackwardTest, RefusesOverlap) {
  const auto overlaps = [&](Tensor LinearBackward::*result, Tensor LinearBackward::*other) {
    LinearBackward op = op_;
    (op.*result).data = (op.*other).data;
    return refusal(op);
  };
  EXPECT_EQ(overlaps(&LinearBackward::dx, &LinearBackward::dy),
            "linear_backward: dx F32[2, 3] overlaps dy F32[2, 2]");
  EXPECT_EQ(overlaps(&LinearBackward::dx, &LinearBackward::x),
            "linear_backward: dx F32[2, 3] overlaps x F32[2, 3]");
  EXPECT_EQ(overlaps(&LinearBackward::dx, &LinearBackward::dw),
            "linear_backward: dx F32[2, 3] overlaps dw F32[2, 3]");
  EXPECT_EQ(overlaps(&LinearBackward::dx, &LinearBackward::dbias),
            "linear_backward: dx F32[2, 3] overlaps dbias F32[2]");
  EXPECT_EQ(overlaps(&LinearBackward::dw, &LinearBackward::dy),
            "linear_backward: dw F32[2, 3] overlaps dy F32[2, 2]");
  EXPECT_EQ(overlaps(&LinearBackward::dw, &LinearBackward::x),
            "linear_backward: dw F32[2, 3] overlaps x F32[2, 3]");
  EXPECT_EQ(overlaps(&LinearBackward::dw, &LinearBackward::dbias),
            "linear_backward: dw F32[2, 3] overlaps dbias F32[2]");
  EXPECT_EQ(overlaps(&LinearBackward::dbias, &LinearBackward::dy),
            "linear_backward: dbias F32[2] overlaps dy F32[2, 2]");
  EXPECT_EQ(overlaps(&LinearBackward::dbias, &LinearBackward::x),
            "linear_backward: dbias F32[2] overlaps x F32[2, 3]");
  for (Tensor LinearBackward::*other : {&LinearBackward::dy, &LinearBackward::x, &LinearBackward::dx,
                                        &LinearBackward::dw, &LinearBackward::dbias}) {
    LinearBackward op = op_;
    op.workspace = Tensor((op.*other).data, DType::kU8, {8});
    EXPECT_THAT(refusal(op), ::testing::StartsWith("linear_backward: workspace U8[8] overlaps "));
  }
}

}  // namespace
}  // namespace qiao
