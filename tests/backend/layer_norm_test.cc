#include "backend/ops/layer_norm.h"

#include <cmath>

#include "backend/op_test.h"

namespace qiao {
namespace {

class LayerNormTest : public ::testing::Test {
 protected:
  LayerNormTest() {
    op_.x = x_, op_.residual = residual_, op_.gamma = gamma_, op_.beta = beta_, op_.y = y_;
    op_.epsilon = 1.0f;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats x_{{2, 2}, {1, 5, 7, 7}};
  Floats residual_{{2, 2}, {0, 2, 0, 0}};
  Floats gamma_{{2}, {1, -2}};
  Floats beta_{{2}, {10, 20}};
  Floats y_{{2, 2}};
  LayerNorm op_;
};

TEST_F(LayerNormTest, AnExampleByHand) {
  chip_->layer_norm(op_);
  // h = 1, 7; mean 4, d = -3, 3; mean of squares 9, with epsilon 10.
  const float root = std::sqrt(10.0f);
  EXPECT_FLOAT_EQ(y_.data()[0], 10 - 3 / root);
  EXPECT_FLOAT_EQ(y_.data()[1], 20 - 6 / root);
  EXPECT_EQ(y_.data()[2], 10);  // a constant row is beta
  EXPECT_EQ(y_.data()[3], 20);
}

TEST_F(LayerNormTest, InPlaceWithoutBeta) {
  op_.residual = op_.beta = Tensor();
  op_.y = x_;
  chip_->layer_norm(op_);
  EXPECT_FLOAT_EQ(x_.data()[0], -2 / std::sqrt(5.0f));
  EXPECT_FLOAT_EQ(x_.data()[1], -4 / std::sqrt(5.0f));
}

TEST_F(LayerNormTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  LayerNorm op = op_;
  op.x = reshaped(x_, {1, 2, 2});
  EXPECT_EQ(refusal(op), "layer_norm: x is F32[1, 2, 2], expected 2 dimensions");
  op = op_, op.x = reshaped(x_, {2, 0});
  EXPECT_EQ(refusal(op), "layer_norm: x is F32[2, 0], expected rows of one element or more");
  op = op_, op.y = reshaped(y_, {4, 1});
  EXPECT_EQ(refusal(op), "layer_norm: y is F32[4, 1], expected F32[2, 2]");
  op = op_, op.residual = reshaped(residual_, {1, 4});
  EXPECT_EQ(refusal(op), "layer_norm: residual is F32[1, 4], expected F32[2, 2]");
  op = op_, op.gamma = Tensor();
  EXPECT_EQ(refusal(op), "layer_norm: gamma is absent, expected F32[2]");
  op = op_, op.beta = reshaped(beta_, {1});
  EXPECT_EQ(refusal(op), "layer_norm: beta is F32[1], expected F32[2]");
  op = op_, op.epsilon = 0;
  EXPECT_EQ(refusal(op), "layer_norm: epsilon is 0, expected it above 0");
}

TEST_F(LayerNormTest, RefusesOverlap) {
  LayerNorm op = op_;
  op.gamma = reshaped(y_, {2});
  EXPECT_EQ(refusal(op), "layer_norm: y F32[2, 2] overlaps gamma F32[2]");
  op = op_, op.beta = reshaped(y_, {2});
  EXPECT_EQ(refusal(op), "layer_norm: y F32[2, 2] overlaps beta F32[2]");
  Floats memory({6});
  op = op_, op.x = reshaped(memory, {2, 2}), op.y = op.x, op.y.data = memory.data() + 1;
  EXPECT_EQ(refusal(op), "layer_norm: y F32[2, 2] overlaps x F32[2, 2] without being it");
  op = op_, op.residual = reshaped(memory, {2, 2}), op.y = op.residual, op.y.data = memory.data() + 1;
  EXPECT_EQ(refusal(op), "layer_norm: y F32[2, 2] overlaps residual F32[2, 2] without being it");
}

}  // namespace
}  // namespace qiao
