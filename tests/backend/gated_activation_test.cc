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

}  // namespace
}  // namespace qiao
