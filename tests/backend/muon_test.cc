#include "backend/ops/muon.h"

#include <cmath>
#include <span>

#include "backend/op_test.h"
#include "backend/reference/exact.h"

namespace qiao {
namespace {

// Five times x -> a x + b x^3 + c x^5.
double five_steps(double x) {
  for (int step = 0; step < 5; ++step)
    x = Muon::kA * x + Muon::kB * std::pow(x, 3) + Muon::kC * std::pow(x, 5);
  return x;
}

class MuonTest : public ::testing::Test {
 protected:
  MuonTest() { op_.parameters = parameters_, op_.gradients = gradients_, op_.momentum = momentum_; }
  Floats parameters_{{2, 3}, {1, 2, 3, 4, 5, 6}}, gradients_{{2, 3}, {0, 0, 3, -4, 0, 0}}, momentum_{{2, 3}};
  Muon op_;
};

// A matrix of one number a row and column has its singular values in sight: 3 and 4, of norm 5.
TEST_F(MuonTest, AnExampleByHand) {
  op_.learning_rate = 0.5, op_.weight_decay = 0.5, op_.beta = 0.5, op_.gradient_scale = 2;
  reference_chip()->muon(op_);
  EXPECT_THAT(momentum_.list(), ::testing::ElementsAre(0, 0, 3, -4, 0, 0));  // half of 2 * 3
  EXPECT_FLOAT_EQ(parameters_.data()[0], 0.75);
  EXPECT_FLOAT_EQ(parameters_.data()[2], 0.75 * 3 - 0.5 * five_steps(0.6));
  EXPECT_FLOAT_EQ(parameters_.data()[3], 0.75 * 4 + 0.5 * five_steps(0.8));
}

TEST_F(MuonTest, ATallMatrixIsTheWideOneTransposedWithALongerStep) {
  Floats parameters({3, 2}), gradients({3, 2}, {0, -4, 0, 0, 3, 0}), momentum({3, 2});
  op_.parameters = parameters, op_.gradients = gradients, op_.momentum = momentum;
  op_.learning_rate = 0.5, op_.nesterov = false;
  reference_chip()->muon(op_);
  EXPECT_FLOAT_EQ(parameters.data()[4], -0.5 * std::sqrt(1.5) * five_steps(0.6));
  EXPECT_FLOAT_EQ(parameters.data()[1], 0.5 * std::sqrt(1.5) * five_steps(0.8));
  op_.adjustment = Muon::Adjustment::kMatchRmsAdamW;
  EXPECT_DOUBLE_EQ(op_.step_size(), 0.5 * 0.2 * std::sqrt(3));
}

// Momentum and gradient add up over steps as torch.optim.Muon's buffer does.
TEST_F(MuonTest, MomentumAndItsLookAhead) {
  op_.beta = 0.75;
  momentum_.data()[2] = 8, momentum_.data()[3] = 0;
  op_.learning_rate = 1, op_.weight_decay = 0;
  for (float& p : std::span(parameters_.data(), 6)) p = 0;
  reference_chip()->muon(op_);
  const double third = 0.75 * 8 + 0.25 * 3, fourth = 0.25 * -4;
  EXPECT_FLOAT_EQ(momentum_.data()[2], static_cast<float>(third));
  const double u = 0.25 * 3 + 0.75 * third, w = 0.25 * -4 + 0.75 * fourth, length = std::hypot(u, w);
  EXPECT_FLOAT_EQ(parameters_.data()[2], -five_steps(u / length));
  EXPECT_FLOAT_EQ(parameters_.data()[3], five_steps(-w / length));
}

TEST_F(MuonTest, NothingToLearnMovesNothingButDecays) {
  Floats zeros({2, 3});
  op_.gradients = zeros;
  for (const std::string_view name : chip_names()) {
    const std::unique_ptr<Backend> chip = make_backend(name, BackendOptions{1});
    Bytes workspace({static_cast<int64_t>(chip->workspace_bytes(op_)) + 64});
    op_.workspace = workspace;
    chip->muon(op_);
  }
  EXPECT_FLOAT_EQ(parameters_.data()[5], 6 * std::pow(1 - 1e-4, chip_names().size()));
}

TEST_F(MuonTest, TheBoundIsOfUse) {
  const reference::MuonTerms terms = reference::exact_muon(op_);
  EXPECT_GT(terms.orthogonal_error, 0x1p-24);
  EXPECT_LT(terms.orthogonal_error, 0.02);
}

TEST_F(MuonTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 5 * 2 * (2 * 2 * 2 * 3 + 2 * 2 * 2) + 12 * 6);
  EXPECT_EQ(op_.bytes(), 5 * 24);
}

TEST_F(MuonTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  Muon op = op_;
  op.parameters = reshaped(parameters_, {6});
  EXPECT_EQ(refusal(op), "muon: parameters is F32[6], expected 2 dimensions");
  op = op_, op.parameters = reshaped(parameters_, {0, 3});
  EXPECT_EQ(refusal(op), "muon: parameters is F32[0, 3], expected elements");
  op = op_, op.gradients = reshaped(gradients_, {3, 2});
  EXPECT_EQ(refusal(op), "muon: gradients is F32[3, 2], expected F32[2, 3]");
  op = op_, op.momentum = {};
  EXPECT_EQ(refusal(op), "muon: momentum is absent, expected F32[2, 3]");
  op = op_, op.learning_rate = NAN;
  EXPECT_EQ(refusal(op), "muon: learning_rate is nan, expected 0 or more");
  op = op_, op.beta = 1;
  EXPECT_EQ(refusal(op), "muon: beta is 1, expected it from 0 to below 1");
  op = op_, op.weight_decay = -1;
  EXPECT_EQ(refusal(op), "muon: weight_decay is -1, expected 0 or more");
  op = op_, op.gradient_scale = INFINITY;
  EXPECT_EQ(refusal(op), "muon: gradient_scale is inf, expected a finite number");
  op = op_, op.momentum = op.gradients;
  EXPECT_EQ(refusal(op), "muon: momentum F32[2, 3] overlaps gradients F32[2, 3]");
  op = op_, op.workspace = Tensor(parameters_.data(), DType::kU8, {64});
  EXPECT_EQ(refusal(op), "muon: workspace U8[64] overlaps parameters F32[2, 3]");
}

}  // namespace
}  // namespace qiao
