#include "backend/ops/norm.h"

#include <cmath>

#include "backend/op_test.h"

namespace qiao {
namespace {

class AddRmsNormTest : public ::testing::Test {
 protected:
  AddRmsNormTest() {
    op_.x = x_, op_.residual = residual_, op_.gamma = gamma_, op_.y = y_, op_.residual_out = residual_out_;
    op_.epsilon = 1.0f;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats x_{{2, 2}, {1, 5, 0, 0}};
  Floats residual_{{2, 2}, {4, 0, 0, 0}};
  Floats gamma_{{2}, {1, -2}};
  Floats y_{{2, 2}};
  Floats residual_out_{{2, 2}};
  AddRmsNorm op_;
};

TEST_F(AddRmsNormTest, AnExampleByHand) {
  op_.gamma_offset = 1.0f;
  chip_->add_rms_norm(op_);
  // h = 5, 5; mean of squares 25, with epsilon 26; gamma 2, -1.
  const float root = std::sqrt(26.0f);
  EXPECT_FLOAT_EQ(y_.data()[0], 10 / root);
  EXPECT_FLOAT_EQ(y_.data()[1], -5 / root);
  EXPECT_THAT(residual_out_.list(), ::testing::ElementsAre(5, 5, 0, 0));
  EXPECT_EQ(y_.data()[2], 0);
}

TEST_F(AddRmsNormTest, HeadsAreRows) {
  Floats x({1, 2, 2}, {5, 5, 0, 3}), y({1, 2, 2});
  AddRmsNorm op;
  op.x = x, op.y = y, op.epsilon = 1.0f;
  chip_->add_rms_norm(op);
  EXPECT_FLOAT_EQ(y.data()[0], 5 / std::sqrt(26.0f));
  EXPECT_FLOAT_EQ(y.data()[3], 3 / std::sqrt(5.5f));
}

TEST_F(AddRmsNormTest, InPlace) {
  op_.y = x_, op_.residual_out = residual_;
  chip_->add_rms_norm(op_);
  EXPECT_FLOAT_EQ(x_.data()[1], -10 / std::sqrt(26.0f));
  EXPECT_THAT(residual_.list(), ::testing::ElementsAre(5, 5, 0, 0));
}

TEST_F(AddRmsNormTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  AddRmsNorm op = op_;
  op.x = reshaped(x_, {4});
  EXPECT_EQ(refusal(op), "add_rms_norm: x is F32[4], expected 2 dimensions");
  op = op_, op.y = reshaped(y_, {1, 2, 2});
  EXPECT_EQ(refusal(op), "add_rms_norm: y is F32[1, 2, 2], expected F32[2, 2]");
  op = op_, op.residual = reshaped(residual_, {1, 4});
  EXPECT_EQ(refusal(op), "add_rms_norm: residual is F32[1, 4], expected F32[2, 2]");
  op = op_, op.residual_out = reshaped(residual_out_, {4, 1});
  EXPECT_EQ(refusal(op), "add_rms_norm: residual_out is F32[4, 1], expected F32[2, 2]");
  op = op_, op.gamma = reshaped(gamma_, {1});
  EXPECT_EQ(refusal(op), "add_rms_norm: gamma is F32[1], expected F32[2]");
  op = op_, op.epsilon = 0;
  EXPECT_EQ(refusal(op), "add_rms_norm: epsilon is 0, expected it above 0");
  op = op_, op.gamma_offset = INFINITY;
  EXPECT_EQ(refusal(op), "add_rms_norm: gamma_offset is not finite");
  op = op_, op.x.stride = {1, 2};
  EXPECT_EQ(refusal(op), "add_rms_norm: x F32[2, 2] has stride 2 in its last dimension, expected 1");
}

TEST_F(AddRmsNormTest, RefusesOverlap) {
  AddRmsNorm op = op_;
  op.y = residual_;
  EXPECT_EQ(refusal(op), "add_rms_norm: y F32[2, 2] overlaps residual F32[2, 2]");
  op = op_, op.residual_out = y_;
  EXPECT_EQ(refusal(op), "add_rms_norm: y F32[2, 2] overlaps residual_out F32[2, 2]");
  op = op_, op.gamma = reshaped(y_, {2});
  EXPECT_EQ(refusal(op), "add_rms_norm: y F32[2, 2] overlaps gamma F32[2]");
  Floats memory({6});
  op = op_, op.x = reshaped(memory, {2, 2}), op.y = op.x, op.y.data = memory.data() + 1;
  EXPECT_EQ(refusal(op), "add_rms_norm: y F32[2, 2] overlaps x F32[2, 2] without being it");
}

}  // namespace
}  // namespace qiao
