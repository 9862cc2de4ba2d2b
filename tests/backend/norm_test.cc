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

class AddRmsNormBackwardTest : public ::testing::Test {
 protected:
  AddRmsNormBackwardTest() {
    op_.dy = dy_, op_.dresidual_out = more_, op_.h = h_, op_.gamma = gamma_, op_.dh = dh_,
    op_.dgamma = dgamma_;
    op_.epsilon = 11.5f;  // mean(h^2) = 12.5 of row 0, so r = 1 / sqrt(24); 1 / sqrt(11.5) of row 1
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats dy_{{2, 2}, {2, -1, 1, 0}};
  Floats more_{{2, 2}, {100, 0, 0, 0}};
  Floats h_{{2, 2}, {3, 4, 0, 0}};
  Floats gamma_{{2}, {1, -2}};
  Floats dh_{{2, 2}};
  Floats dgamma_{{2}, {10, 0}};
  AddRmsNormBackward op_;
};

TEST_F(AddRmsNormBackwardTest, AnExampleByHand) {
  op_.gamma_offset = 1.0f;
  chip_->add_rms_norm_backward(op_);
  // g = 2, -1; g dy = 4, 1 and 2, 0; sum g dy h = 16; r^2 / C = 1 / 48.
  const double r = 1 / std::sqrt(24.0);
  EXPECT_FLOAT_EQ(dh_.data()[0], static_cast<float>(100 + r * (4 - 3.0 * 16 / 48)));
  EXPECT_FLOAT_EQ(dh_.data()[1], static_cast<float>(r * (1 - 4.0 * 16 / 48)));
  EXPECT_FLOAT_EQ(dh_.data()[2], static_cast<float>(2 / std::sqrt(11.5)));
  EXPECT_EQ(dh_.data()[3], 0);
  EXPECT_FLOAT_EQ(dgamma_.data()[0], static_cast<float>(10 + 6 * r));
  EXPECT_FLOAT_EQ(dgamma_.data()[1], static_cast<float>(-4 * r));
}

TEST_F(AddRmsNormBackwardTest, InPlace) {
  chip_->add_rms_norm_backward(op_);
  const std::vector<float> dh = dh_.list(), dgamma = dgamma_.list();
  const std::vector<float> dy = dy_.list();
  dgamma_.data()[0] = 10, dgamma_.data()[1] = 0;
  op_.dh = dy_;
  chip_->add_rms_norm_backward(op_);
  EXPECT_EQ(dy_.list(), dh);
  EXPECT_EQ(dgamma_.list(), dgamma);
  std::copy(dy.begin(), dy.end(), dy_.data());
  op_.dh = more_;
  chip_->add_rms_norm_backward(op_);
  EXPECT_EQ(more_.list(), dh);
}

TEST_F(AddRmsNormBackwardTest, IsTheDerivativeOfAddRmsNorm) {
  // Two heads of three: loss = sum of c y + d h, with y = h / sqrt(mean(h^2) + 0.25) * (gamma + 1).
  const std::vector<float> h = {0.5f, -1.25f, 2, 0.75f, 0.125f, -0.5f}, gamma = {0.5f, -0.25f, 2};
  const std::vector<float> c = {1, -2, 0.5f, 3, 0.25f, -1}, d = {0.5f, 0.25f, -1, 2, 0, 1};
  const auto loss = [&](const std::vector<double>& h_at, const std::vector<double>& gamma_at) {
    double sum = 0;
    for (size_t row = 0; row < 2; ++row) {
      double squares = 0;
      for (size_t i = 0; i < 3; ++i) squares += h_at[row * 3 + i] * h_at[row * 3 + i];
      for (size_t i = 0; i < 3; ++i) {
        const double y = h_at[row * 3 + i] / std::sqrt(squares / 3 + 0.25) * (gamma_at[i] + 1);
        sum += c[row * 3 + i] * y + d[row * 3 + i] * h_at[row * 3 + i];
      }
    }
    return sum;
  };
  Floats dy({1, 2, 3}, c), more({1, 2, 3}, d), h_tensor({1, 2, 3}, h), gamma_tensor({3}, gamma);
  Floats dh({1, 2, 3}), dgamma({3});
  AddRmsNormBackward op;
  op.dy = dy, op.dresidual_out = more, op.h = h_tensor, op.gamma = gamma_tensor;
  op.gamma_offset = 1, op.epsilon = 0.25f, op.dh = dh, op.dgamma = dgamma;
  chip_->add_rms_norm_backward(op);
  const auto hs = as_doubles(h), gammas = as_doubles(gamma);
  for (size_t i = 0; i < 6; ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(at, gammas); }, hs, i);
    EXPECT_NEAR(dh.data()[i], slope, 1e-6) << i;
  }
  for (size_t i = 0; i < 3; ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(hs, at); }, gammas, i);
    EXPECT_NEAR(dgamma.data()[i], slope, 1e-6) << i;
  }
}

TEST_F(AddRmsNormBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  AddRmsNormBackward op = op_;
  op.dy = reshaped(dy_, {4});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dy is F32[4], expected 2 dimensions");
  op = op_, op.h = reshaped(h_, {1, 2, 2});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: h is F32[1, 2, 2], expected F32[2, 2]");
  op = op_, op.dh = {};
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dh is absent, expected F32[2, 2]");
  op = op_, op.dresidual_out = reshaped(more_, {1, 4});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dresidual_out is F32[1, 4], expected F32[2, 2]");
  op = op_, op.gamma = reshaped(gamma_, {1});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: gamma is F32[1], expected F32[2]");
  op = op_, op.dgamma = reshaped(dgamma_, {1});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dgamma is F32[1], expected F32[2]");
  op = op_, op.epsilon = -1;
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: epsilon is -1, expected it above 0");
  op = op_, op.gamma_offset = NAN;
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: gamma_offset is not finite");
  op = op_, op.dy.stride = {1, 2};
  EXPECT_EQ(refusal(op),
            "add_rms_norm_backward: dy F32[2, 2] has stride 2 in its last dimension, expected 1");
}

TEST_F(AddRmsNormBackwardTest, RefusesOverlap) {
  AddRmsNormBackward op = op_;
  op.dh = h_;
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dh F32[2, 2] overlaps h F32[2, 2]");
  op = op_, op.gamma = reshaped(dh_, {2});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dh F32[2, 2] overlaps gamma F32[2]");
  op = op_, op.dgamma = reshaped(dh_, {2});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dh F32[2, 2] overlaps dgamma F32[2]");
  op = op_, op.dgamma = reshaped(dy_, {2});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dgamma F32[2] overlaps dy F32[2, 2]");
  op = op_, op.dgamma = reshaped(more_, {2});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dgamma F32[2] overlaps dresidual_out F32[2, 2]");
  op = op_, op.dgamma = reshaped(h_, {2});
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dgamma F32[2] overlaps h F32[2, 2]");
  op = op_, op.dgamma = gamma_;
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dgamma F32[2] overlaps gamma F32[2]");
  Floats memory({6});
  op = op_, op.dy = reshaped(memory, {2, 2}), op.dh = op.dy, op.dh.data = memory.data() + 1;
  EXPECT_EQ(refusal(op), "add_rms_norm_backward: dh F32[2, 2] overlaps dy F32[2, 2] without being it");
  op = op_, op.dresidual_out = reshaped(memory, {2, 2}), op.dh = op.dresidual_out;
  op.dh.data = memory.data() + 1;
  EXPECT_EQ(refusal(op),
            "add_rms_norm_backward: dh F32[2, 2] overlaps dresidual_out F32[2, 2] without being it");
}

}  // namespace
}  // namespace qiao
