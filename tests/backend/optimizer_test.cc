#include "backend/ops/optimizer.h"

#include <cmath>
#include <span>

#include "backend/op_test.h"

namespace qiao {
namespace {

using Doubles = Values<double, DType::kF64>;

TEST(SumOfSquares, AnExampleByHand) {
  const std::unique_ptr<Backend> chip = reference_chip();
  Floats x({3}, {3, -4, 0.5});
  Doubles sum({1}, {100});
  SumOfSquares op{x, sum};
  chip->sum_of_squares(op);
  EXPECT_EQ(sum.data()[0], 125.25);
  x.data()[1] = INFINITY;
  chip->sum_of_squares(op);
  EXPECT_EQ(sum.data()[0], INFINITY);
  x.data()[0] = NAN;
  chip->sum_of_squares(op);
  EXPECT_TRUE(std::isnan(sum.data()[0]));
  EXPECT_EQ(op.flops(), 6);
  EXPECT_EQ(op.bytes(), 12);
}

TEST(SumOfSquares, Refuses) {
  Floats x({4});
  Doubles sum({1});
  SumOfSquares op{x, sum};
  EXPECT_EQ(refusal(op), "");
  op.x = reshaped(x, {2, 2});
  EXPECT_EQ(refusal(op), "sum_of_squares: x is F32[2, 2], expected 1 dimensions");
  op.x = Tensor(x.data(), DType::kF16, {4});
  EXPECT_EQ(refusal(op), "sum_of_squares: x is F16[4], expected F32[4]");
  op.x = x, op.sum = reshaped(x, {1});
  EXPECT_EQ(refusal(op), "sum_of_squares: sum is F32[1], expected F64[1]");
  op.sum = Tensor(x.data(), DType::kF64, {1});
  EXPECT_EQ(refusal(op), "sum_of_squares: sum F64[1] overlaps x F32[4]");
}

TEST(Accumulate, AddsAndRefuses) {
  Floats x({3}, {1, 0x1p-25f, -2}), sum({3}, {2, 1, 2}), two({2});
  Accumulate op{x, sum};
  reference_chip()->accumulate(op);
  EXPECT_THAT(sum.list(), ::testing::ElementsAre(3, 1, 0));
  EXPECT_EQ(op.flops(), 3);
  EXPECT_EQ(op.bytes(), 36);
  op.sum = two;
  EXPECT_EQ(refusal(op), "accumulate: sum is F32[2], expected F32[3]");
  op.sum = x;
  EXPECT_EQ(refusal(op), "accumulate: sum F32[3] overlaps x F32[3]");
}

class AdamWTest : public ::testing::Test {
 protected:
  AdamWTest() {
    op_.parameters = parameters_, op_.gradients = gradients_, op_.first_moment = first_;
    op_.second_moment = second_;
  }
  Floats parameters_{{3}, {1, -2, 0.5}}, gradients_{{3}, {0.5, -1, 0}};
  Floats first_{{3}}, second_{{3}};
  AdamW op_;
};

TEST_F(AdamWTest, TheFirstStepByHand) {
  op_.learning_rate = 0.25, op_.weight_decay = 0.5, op_.beta1 = 0.5, op_.beta2 = 0.75, op_.epsilon = 0x1p-40;
  op_.gradient_scale = 2;
  reference_chip()->adamw(op_);
  // g = 1, -2, 0: m = g / 2 and v = g^2 / 4, both corrected back to g and g^2, so each step is 0.25 * sign(g)
  // after p * 0.875.
  EXPECT_THAT(first_.list(), ::testing::ElementsAre(0.5f, -1.0f, 0.0f));
  EXPECT_THAT(second_.list(), ::testing::ElementsAre(0.25f, 1.0f, 0.0f));
  EXPECT_FLOAT_EQ(parameters_.data()[0], 0.875f - 0.25f);
  EXPECT_FLOAT_EQ(parameters_.data()[1], -1.75f + 0.25f);
  EXPECT_FLOAT_EQ(parameters_.data()[2], 0.4375f);
}

// torch.optim.AdamW's own steps, in float64, beside some of every chip's.
TEST_F(AdamWTest, SeveralStepsStayNearFloat64) {
  for (const std::string_view name : chip_names()) {
    const std::unique_ptr<Backend> chip = make_backend(name, BackendOptions{2});
    constexpr int64_t kCount = 37;
    Floats p({kCount}), g({kCount}), m({kCount}), v({kCount});
    std::vector<double> exact_p, exact_m(kCount), exact_v(kCount);
    for (int64_t i = 0; i < kCount; ++i) {
      p.data()[i] = static_cast<float>(std::sin(static_cast<double>(i) + 1));
      exact_p.push_back(static_cast<double>(p.data()[i]));
    }
    AdamW op;
    op.parameters = p, op.gradients = g, op.first_moment = m, op.second_moment = v;
    op.learning_rate = 0.01, op.gradient_scale = 0.5;
    for (op.step = 1; op.step <= 8; ++op.step) {
      for (size_t i = 0; i < exact_p.size(); ++i) {
        const float gradient =
            static_cast<float>(std::cos(static_cast<double>(i) * static_cast<double>(op.step)));
        g.data()[i] = gradient;
        const double scaled = 0.5 * static_cast<double>(gradient);
        exact_p[i] *= 1 - 0.01 * 0.1;
        exact_m[i] = 0.9 * exact_m[i] + (1 - 0.9) * scaled;
        exact_v[i] = 0.95 * exact_v[i] + (1 - 0.95) * scaled * scaled;
        const double denominator =
            std::sqrt(exact_v[i]) / std::sqrt(1 - std::pow(0.95, static_cast<double>(op.step))) + 1e-8;
        exact_p[i] -= 0.01 / (1 - std::pow(0.9, static_cast<double>(op.step))) * exact_m[i] / denominator;
      }
      chip->adamw(op);
    }
    // A step's bound (ops/optimizer.h) is some 20 roundings of a step of 0.01 and 4 of p; eight of them.
    for (size_t i = 0; i < exact_p.size(); ++i) {
      EXPECT_NEAR(p.data()[i], exact_p[i], 8 * 0x1p-24 * (4 * 1.1 + 20 * 0.05)) << name << " " << i;
      EXPECT_NEAR(m.data()[i], exact_m[i], 8 * 5 * 0x1p-24) << name;
      EXPECT_NEAR(v.data()[i], exact_v[i], 8 * 8 * 0x1p-24 * exact_v[i] + 1e-30) << name;
    }
  }
}

TEST_F(AdamWTest, MomentsOfBF16AreRoundedToNearestEven) {
  Values<uint16_t, DType::kBF16> first({3}), second({3});
  op_.first_moment = first, op_.second_moment = second;
  op_.beta1 = 0, op_.beta2 = 0, op_.learning_rate = 0;
  gradients_.data()[0] = 1 + 0x1p-8f, gradients_.data()[1] = 1 + 3 * 0x1p-8f,
  gradients_.data()[2] = 1 + 3 * 0x1p-8f - 0x1p-20f;
  reference_chip()->adamw(op_);
  // Numbers of BF16 near 1 lie 2^-7 apart: two ties, each to the even one, and one below a tie.
  EXPECT_THAT(first.list(), ::testing::ElementsAre(0x3f80, 0x3f82, 0x3f81));
  EXPECT_EQ(op_.bytes(), 3 * 12 + 2 * 12);
}

TEST_F(AdamWTest, MomentsOfCodesByHand) {
  Bytes first({3}), second({3});
  Floats first_scales({1}), second_scales({1});
  op_.first_moment = first, op_.second_moment = second;
  op_.first_scales = first_scales, op_.second_scales = second_scales;
  op_.beta1 = 0, op_.beta2 = 0, op_.learning_rate = 0;
  gradients_.data()[0] = -4, gradients_.data()[1] = 2, gradients_.data()[2] = 0.001f;
  reference_chip()->adamw(op_);
  EXPECT_EQ(first_scales.data()[0], 4);
  EXPECT_EQ(second_scales.data()[0], 16);
  // m / 4 = -1, 0.5, 0.00025. The decade below 1 has 64 pieces of 0.9 / 64: 0.5 lies in the 29th, 36 from the
  // top; 0.00025 lies in the second of the 8 pieces of 0.9e-3 / 8 from 1e-4, above 1 + 2 + 4 values of
  // smaller decades.
  EXPECT_THAT(first.list(), ::testing::ElementsAre(0, 255 - 1 - 35, 127 + 7 + 2));
  // v / 16 = 1, 0.25, 6e-8: less than half of the smallest value, but not nothing.
  const double piece = 0.9 / 128, below = 2 + 4 + 8 + 16 + 32 + 64;
  EXPECT_THAT(second.list(), ::testing::ElementsAre(255, below + 1 + std::floor((0.25 - 0.1) / piece), 1));
  EXPECT_EQ(op_.bytes(), 3 * 12 + 2 * (3 + 3 + 4 + 4));
  for (float& gradient : std::span(gradients_.data(), 3)) gradient = 0;
  reference_chip()->adamw(op_);
  EXPECT_EQ(first_scales.data()[0], 0);
  EXPECT_THAT(first.list(), ::testing::Each(127));
  EXPECT_THAT(second.list(), ::testing::Each(0));
}

TEST(DynamicCodes, AreThoseOfThePaper) {
  const DynamicCodes& with = signed_codes();
  const DynamicCodes& without = unsigned_codes();
  EXPECT_EQ(with.value[255], 1);
  EXPECT_FLOAT_EQ(with.value[254], 0.1 + 0.9 * 63.5 / 64);
  EXPECT_EQ(with.value[127], 0);
  EXPECT_FLOAT_EQ(with.value[128], 1e-6 * 0.55);
  EXPECT_FLOAT_EQ(with.value[0], -(0.1 + 0.9 * 63.5 / 64));
  EXPECT_FLOAT_EQ(without.value[1], 1e-6 * (0.1 + 0.9 * 0.25));
  EXPECT_FLOAT_EQ(without.value[254], 0.1 + 0.9 * 127.5 / 128);
  for (size_t c = 0; c < 256; ++c) {
    EXPECT_EQ(with.code_of(with.value[c]), c);
    EXPECT_EQ(without.code_of(without.value[c]), c);
    if (c > 0 && c < 255) {
      EXPECT_EQ(with.value[c], -with.value[254 - c]);
    }
  }
  EXPECT_EQ(with.code_of(-2), 0);
  EXPECT_EQ(with.code_of(2), 255);
  EXPECT_EQ(without.code_of(without.boundary[9]), 9);  // a tie goes down
}

TEST_F(AdamWTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 45);
  EXPECT_EQ(op_.bytes(), 7 * 12);
}

TEST_F(AdamWTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  AdamW op = op_;
  op.parameters = reshaped(parameters_, {3, 1});
  EXPECT_EQ(refusal(op), "adamw: parameters is F32[3, 1], expected 1 dimensions");
  op = op_, op.gradients = reshaped(gradients_, {2});
  EXPECT_EQ(refusal(op), "adamw: gradients is F32[2], expected F32[3]");
  op = op_, op.first_moment = {};
  EXPECT_EQ(refusal(op), "adamw: first_moment is absent, expected F32[3]");
  Bytes codes({3}), more({3});
  Floats scales({1}), two({2});
  op = op_, op.first_moment = Tensor(first_.data(), DType::kF16, {3});
  EXPECT_EQ(refusal(op), "adamw: first_moment is F16[3], expected F32, BF16 or U8");
  op = op_, op.first_moment = codes;
  EXPECT_EQ(refusal(op), "adamw: second_moment is F32[3], expected U8[3]");
  op.second_moment = more;
  EXPECT_EQ(refusal(op), "adamw: first_scales is absent, expected F32[1]");
  op.first_scales = scales, op.second_scales = two;
  EXPECT_EQ(refusal(op), "adamw: second_scales is F32[2], expected F32[1]");
  op.second_scales = scales;
  EXPECT_EQ(refusal(op), "adamw: first_scales F32[1] overlaps second_scales F32[1]");
  op = op_, op.first_scales = scales;
  EXPECT_EQ(refusal(op), "adamw: first_scales is F32[1], expected none beside moments of F32");
  op = op_, op.second_moment = reshaped(second_, {1, 3});
  EXPECT_EQ(refusal(op), "adamw: second_moment is F32[1, 3], expected F32[3]");
  op = op_, op.learning_rate = -1;
  EXPECT_EQ(refusal(op), "adamw: learning_rate is -1, expected 0 or more");
  op = op_, op.beta1 = 1;
  EXPECT_EQ(refusal(op), "adamw: beta1 is 1, expected it from 0 to below 1");
  op = op_, op.beta2 = NAN;
  EXPECT_EQ(refusal(op), "adamw: beta2 is nan, expected it from 0 to below 1");
  op = op_, op.epsilon = 0;
  EXPECT_EQ(refusal(op), "adamw: epsilon is 0, expected 2^-126 or more");
  op = op_, op.weight_decay = INFINITY;
  EXPECT_EQ(refusal(op), "adamw: weight_decay is inf, expected 0 or more");
  op = op_, op.gradient_scale = INFINITY;
  EXPECT_EQ(refusal(op), "adamw: gradient_scale is inf, expected a finite number");
  op = op_, op.step = 0;
  EXPECT_EQ(refusal(op), "adamw: step is 0, expected 1 or more");
  op = op_, op.gradients = op.parameters;
  EXPECT_EQ(refusal(op), "adamw: parameters F32[3] overlaps gradients F32[3]");
  op = op_, op.second_moment = op.first_moment;
  EXPECT_EQ(refusal(op), "adamw: first_moment F32[3] overlaps second_moment F32[3]");
}

}  // namespace
}  // namespace qiao
