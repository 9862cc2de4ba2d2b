#include "backend/ops/gated_activation.h"

#include <cmath>

#include "backend/op_test.h"

namespace qiao {
namespace {

class GatedActivationTest : public ::testing::Test {
 protected:
  GatedActivationTest() { op_ = {x_, Activation::kSilu, y_}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats x_{{1, 4}, {1, 0, 10, 20}};
  Floats y_{{1, 2}};
  GatedActivation op_;
};

TEST_F(GatedActivationTest, ExamplesByHand) {
  chip_->gated_activation(op_);
  EXPECT_FLOAT_EQ(y_.data()[0], 10 / (1 + std::exp(-1.0f)));
  EXPECT_EQ(y_.data()[1], 0);
  op_.activation = Activation::kGelu;
  chip_->gated_activation(op_);
  EXPECT_FLOAT_EQ(y_.data()[0], 8.4134475f);  // the normal distribution up to 1 is 0.84134475
  op_.activation = Activation::kGeluTanh;
  chip_->gated_activation(op_);
  EXPECT_FLOAT_EQ(y_.data()[0], 8.4119199f);  // of PyTorch's gelu(1, approximate="tanh")
}

TEST_F(GatedActivationTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  GatedActivation op = op_;
  op.x = reshaped(x_, {2, 2});
  EXPECT_EQ(refusal(op), "gated_activation: x is F32[2, 2], expected F32[1, 4]");
  op = op_, op.y = reshaped(y_, {2});
  EXPECT_EQ(refusal(op), "gated_activation: y is F32[2], expected 2 dimensions");
  op = op_, op.y.dtype = DType::kF16;
  EXPECT_EQ(refusal(op), "gated_activation: y is F16[1, 2], expected F32[1, 2]");
  op = op_, op.activation = Activation::kSoftCap;
  EXPECT_EQ(refusal(op), "gated_activation: activation is none of SiLU, GELU and tanh-GELU");
  op = op_, op.y = reshaped(x_, {1, 2});
  EXPECT_EQ(refusal(op), "gated_activation: y F32[1, 2] overlaps x F32[1, 4]");
}

class GatedActivationBackwardTest : public ::testing::Test {
 protected:
  GatedActivationBackwardTest() { op_ = {x_, Activation::kSilu, dy_, dx_}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats x_{{1, 4}, {1, 0, 10, 20}};
  Floats dy_{{1, 2}, {2, -1}};
  Floats dx_{{1, 4}};
  GatedActivationBackward op_;
};

TEST_F(GatedActivationBackwardTest, ExamplesByHand) {
  chip_->gated_activation_backward(op_);
  // The sigmoid s of 1 is 0.73105858; the slope s + s (1 - s) is 0.92767051; at 0 it is 1/2 of all kinds.
  EXPECT_FLOAT_EQ(dx_.data()[0], 2 * 10 * 0.92767051f);
  EXPECT_FLOAT_EQ(dx_.data()[1], -10);
  EXPECT_FLOAT_EQ(dx_.data()[2], 2 * 0.73105858f);
  EXPECT_EQ(dx_.data()[3], 0);
  op_.activation = Activation::kGelu;
  chip_->gated_activation_backward(op_);
  EXPECT_FLOAT_EQ(dx_.data()[0], 2 * 10 * (0.84134475f + 0.24197072f));  // Phi(1) + phi(1)
  EXPECT_FLOAT_EQ(dx_.data()[1], -10);
  EXPECT_FLOAT_EQ(dx_.data()[2], 2 * 0.84134475f);
}

TEST_F(GatedActivationBackwardTest, InPlace) {
  chip_->gated_activation_backward(op_);
  const std::vector<float> dx = dx_.list();
  op_.dx = x_;
  chip_->gated_activation_backward(op_);
  EXPECT_EQ(x_.list(), dx);
}

TEST_F(GatedActivationBackwardTest, IsTheDerivativeOfGatedActivation) {
  const std::vector<float> gates = {-6, -2.5f, -0.75f, 0, 0.3f, 1, 4, 9},
                           ups = {1, -2, 3, 0.5f, -1, 2, 0.25f, -3};
  const std::vector<float> c = {1, 2, -1, 3, 0.5f, -2, 1, 0.25f};
  std::vector<float> x = gates;
  x.insert(x.end(), ups.begin(), ups.end());
  const auto tanh_gelu = [](double v) {
    return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
  };
  for (const Activation kind : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    const auto loss = [&](const std::vector<double>& at) {
      double sum = 0;
      for (size_t i = 0; i < 8; ++i) {
        const double v = at[i];
        const double a = kind == Activation::kSilu   ? v / (1 + std::exp(-v))
                         : kind == Activation::kGelu ? v * 0.5 * std::erfc(-v / std::sqrt(2.0))
                                                     : tanh_gelu(v);
        sum += c[i] * a * at[8 + i];
      }
      return sum;
    };
    const Floats x_tensor({1, 16}, x), dy({1, 8}, c), dx({1, 16});
    chip_->gated_activation_backward({x_tensor, kind, dy, dx});
    for (size_t i = 0; i < 16; ++i) {
      EXPECT_NEAR(dx.data()[i], difference_quotient(loss, as_doubles(x), i), 1e-6) << i;
    }
  }
}

TEST_F(GatedActivationBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  GatedActivationBackward op = op_;
  op.x = reshaped(x_, {2, 2});
  EXPECT_EQ(refusal(op), "gated_activation_backward: x is F32[2, 2], expected F32[1, 4]");
  op = op_, op.dy = reshaped(dy_, {2});
  EXPECT_EQ(refusal(op), "gated_activation_backward: dy is F32[2], expected 2 dimensions");
  op = op_, op.dx = reshaped(dx_, {4, 1});
  EXPECT_EQ(refusal(op), "gated_activation_backward: dx is F32[4, 1], expected F32[1, 4]");
  op = op_, op.dx.dtype = DType::kF16;
  EXPECT_EQ(refusal(op), "gated_activation_backward: dx is F16[1, 4], expected F32[1, 4]");
  op = op_, op.activation = Activation::kNone;
  EXPECT_EQ(refusal(op), "gated_activation_backward: activation is none of SiLU, GELU and tanh-GELU");
  op = op_, op.dy = reshaped(dx_, {1, 2});
  EXPECT_EQ(refusal(op), "gated_activation_backward: dx F32[1, 4] overlaps dy F32[1, 2]");
  Floats memory({6});
  op = op_, op.x = reshaped(memory, {1, 4}), op.dx = op.x, op.dx.data = memory.data() + 1;
  EXPECT_EQ(refusal(op), "gated_activation_backward: dx F32[1, 4] overlaps x F32[1, 4] without being it");
}

}  // namespace
}  // namespace qiao
