#include "backend/ops/token_logprob.h"

#include <cmath>
#include <random>

#include "backend/op_test.h"

namespace qiao {
namespace {

// Three tokens of two channels, a vocabulary of three.
class TokenLogprobTest : public ::testing::Test {
 protected:
  TokenLogprobTest() {
    op_.x = x_, op_.weight = weight_.get(), op_.labels = labels_, op_.logprob = logprob_;
    op_.log_sum_exp = sums_;
    back_.x = x_, back_.weight = weight_.get(), back_.labels = labels_, back_.log_sum_exp = sums_;
    back_.dlogprob = dlogprob_, back_.dx = dx_, back_.dw = dw_;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  const float ln2_ = std::log(2.0f);
  // Logits of row 0: 0, ln 2, 0 (p = 1/4, 1/2, 1/4); of row 1: all 0.
  std::unique_ptr<Weight> weight_ = weight_of(*chip_, 3, 2, {0, 1, 1, 1, 0, 5});
  Floats x_{{3, 2}, {ln2_, 0, 0, 0, 9, 9}};
  Ints labels_{{3}, {1, 2, -1}};
  Floats logprob_{{3}}, sums_{{3}};
  Floats dlogprob_{{3}, {4, 0, 1}}, dx_{{3, 2}, {8, 8, 8, 8, 8, 8}}, dw_{{3, 2}, {1, 1, 1, 1, 1, 1}};
  TokenLogprob op_;
  TokenLogprobBackward back_;
};

TEST_F(TokenLogprobTest, AnExampleByHand) {
  chip_->token_logprob(op_);
  EXPECT_FLOAT_EQ(logprob_.data()[0], std::log(0.5f));
  EXPECT_FLOAT_EQ(logprob_.data()[1], std::log(1.0f / 3));
  EXPECT_EQ(logprob_.data()[2], 0);  // carries no loss
  EXPECT_FLOAT_EQ(sums_.data()[0], std::log(4.0f));
  EXPECT_EQ(sums_.data()[2], 0);
  chip_->token_logprob_backward(back_);
  // h = 4 * (-1/4, 1/2, -1/4): dx = 2 W[1] - W[0] - W[2]; dw += h x.
  EXPECT_THAT(dx_.list(),
              ::testing::Pointwise(::testing::FloatNear(1e-6f), {2.0f, -4.0f, 0.0f, 0.0f, 0.0f, 0.0f}));
  EXPECT_THAT(dw_.list(), ::testing::Pointwise(::testing::FloatNear(1e-6f),
                                               {1 - ln2_, 1.0f, 1 + 2 * ln2_, 1.0f, 1 - ln2_, 1.0f}));
}

TEST_F(TokenLogprobTest, BothWaysAtOnceAreTheSame) {
  TokenLoss op;
  op.x = x_, op.weight = weight_.get(), op.labels = labels_, op.dlogprob = dlogprob_;
  op.logprob = logprob_, op.log_sum_exp = sums_, op.dx = dx_, op.dw = dw_;
  EXPECT_EQ(refusal(op), "");
  EXPECT_EQ(op.flops(), 3 * 36);
  chip_->token_loss(op);
  EXPECT_FLOAT_EQ(logprob_.data()[0], std::log(0.5f));
  EXPECT_FLOAT_EQ(sums_.data()[0], std::log(4.0f));
  EXPECT_THAT(dx_.list(),
              ::testing::Pointwise(::testing::FloatNear(1e-6f), {2.0f, -4.0f, 0.0f, 0.0f, 0.0f, 0.0f}));
  EXPECT_THAT(dw_.list(), ::testing::Pointwise(::testing::FloatNear(1e-6f),
                                               {1 - ln2_, 1.0f, 1 + 2 * ln2_, 1.0f, 1 - ln2_, 1.0f}));
  TokenLoss wrong = op;
  wrong.dx = {};
  EXPECT_EQ(refusal(wrong), "token_loss: dx is absent, expected F32[3, 2]");
  wrong = op, wrong.dw = reshaped(dw_, {2, 3});
  EXPECT_EQ(refusal(wrong), "token_loss: dw is F32[2, 3], expected F32[3, 2]");
  wrong = op, wrong.logprob = dlogprob_;
  EXPECT_EQ(refusal(wrong), "token_loss: logprob F32[3] overlaps dlogprob F32[3]");
}

TEST_F(TokenLogprobTest, TheCapComesBeforeTheTemperature) {
  op_.temperature = 0.5f;
  op_.soft_cap = 1;
  chip_->token_logprob(op_);
  const float z = std::tanh(ln2_) / 0.5f;
  EXPECT_FLOAT_EQ(logprob_.data()[0], z - std::log(2 + std::exp(z)));
}

TEST_F(TokenLogprobTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 2 * 3 * 2 * 3);
  EXPECT_EQ(op_.bytes(), 4 * (6 + 6 + 3 + 3 + 3));
  EXPECT_EQ(back_.flops(), 3 * 36);
  EXPECT_EQ(back_.bytes(), 4 * (6 + 6 + 3 + 3 + 3 + 6 + 2 * 6));
  back_.dw = {};
  EXPECT_EQ(back_.flops(), 2 * 36);
}

TEST_F(TokenLogprobTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  TokenLogprob op = op_;
  op.weight = nullptr;
  EXPECT_EQ(refusal(op), "token_logprob: weight is absent");
  op = op_, op.x = reshaped(x_, {2, 3});
  EXPECT_EQ(refusal(op), "token_logprob: x is F32[2, 3], expected F32[2, 2]");
  op = op_, op.labels = reshaped(labels_, {2});
  EXPECT_EQ(refusal(op), "token_logprob: labels is I32[2], expected I32[3]");
  op = op_, op.logprob = {};
  EXPECT_EQ(refusal(op), "token_logprob: logprob is absent, expected F32[3]");
  op = op_, op.log_sum_exp = reshaped(sums_, {1, 3});
  EXPECT_EQ(refusal(op), "token_logprob: log_sum_exp is F32[1, 3], expected F32[3]");
  op = op_, op.temperature = 0;
  EXPECT_EQ(refusal(op), "token_logprob: temperature is 0, expected it above 0");
  op = op_, op.soft_cap = -1;
  EXPECT_EQ(refusal(op), "token_logprob: soft_cap is -1, expected 0 (none) or more");
  op = op_, op.compute = Compute::kBF16;
  EXPECT_EQ(refusal(op), "token_logprob: compute is BF16, but weight rows from 0 are F32, expected BF16");
  op = op_, op.logprob = reshaped(x_, {3});
  EXPECT_EQ(refusal(op), "token_logprob: logprob F32[3] overlaps x F32[3, 2]");
  op = op_, op.log_sum_exp = logprob_;
  EXPECT_EQ(refusal(op), "token_logprob: log_sum_exp F32[3] overlaps logprob F32[3]");
}

TEST_F(TokenLogprobTest, TheWayBackRefuses) {
  EXPECT_EQ(refusal(back_), "");
  TokenLogprobBackward op = back_;
  op.dx = {};
  EXPECT_EQ(refusal(op), "");
  op.dw = {};
  EXPECT_EQ(refusal(op), "token_logprob_backward: dx and dw are absent, expected one of them or both");
  op = back_, op.dlogprob = reshaped(dlogprob_, {1});
  EXPECT_EQ(refusal(op), "token_logprob_backward: dlogprob is F32[1], expected F32[3]");
  op = back_, op.dx = reshaped(dx_, {2, 3});
  EXPECT_EQ(refusal(op), "token_logprob_backward: dx is F32[2, 3], expected F32[3, 2]");
  op = back_, op.dw = reshaped(dw_, {2, 3});
  EXPECT_EQ(refusal(op), "token_logprob_backward: dw is F32[2, 3], expected F32[3, 2]");
  op = back_, op.temperature = NAN;
  EXPECT_EQ(refusal(op), "token_logprob_backward: temperature is nan, expected it above 0");
  op = back_, op.dx = x_;
  EXPECT_EQ(refusal(op), "token_logprob_backward: dx F32[3, 2] overlaps x F32[3, 2]");
  op = back_, op.dw = op.dx;
  EXPECT_EQ(refusal(op), "token_logprob_backward: dw F32[3, 2] overlaps dx F32[3, 2]");
}

// sum_t g_t log p(label_t) in float64.
double plain_loss(const std::vector<double>& x, const std::vector<double>& w,
                  const std::vector<int32_t>& labels, const std::vector<double>& g, int64_t columns,
                  double temperature, double soft_cap) {
  double total = 0;
  const auto vocabulary = static_cast<int64_t>(w.size()) / columns;
  for (size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] < 0) continue;
    double sum = 0, own = 0;
    for (int64_t v = 0; v < vocabulary; ++v) {
      double z = 0;
      for (int64_t k = 0; k < columns; ++k) {
        z += x[t * static_cast<size_t>(columns) + static_cast<size_t>(k)] *
             w[static_cast<size_t>(v * columns + k)];
      }
      if (soft_cap > 0) z = soft_cap * std::tanh(z / soft_cap);
      z /= temperature;
      sum += std::exp(z);
      if (v == labels[t]) own = z;
    }
    total += g[t] * (own - std::log(sum));
  }
  return total;
}

TEST(TokenLogprobBackward, IsTheFiniteDifferenceOfTheForwardPass) {
  const int64_t tokens = 5, columns = 4, vocabulary = 7;
  for (const float soft_cap : {0.0f, 1.5f}) {
    for (const float temperature : {1.0f, 0.7f}) {
      std::mt19937 random(3);
      std::normal_distribution<float> normal;
      std::vector<float> rows(static_cast<size_t>(vocabulary * columns));
      for (float& value : rows) value = normal(random);
      const std::unique_ptr<Backend> chip = reference_chip();
      const std::unique_ptr<Weight> weight = weight_of(*chip, vocabulary, columns, rows);
      Floats x({tokens, columns}), g({tokens}), logprob({tokens}), sums({tokens});
      Floats dx({tokens, columns}), dw({vocabulary, columns});
      for (int64_t i = 0; i < tokens * columns; ++i) x.data()[i] = normal(random);
      for (int64_t i = 0; i < tokens; ++i) g.data()[i] = normal(random);
      Ints labels({tokens}, {0, 6, -1, 3, 3});
      TokenLogprob forward;
      forward.x = x, forward.weight = weight.get(), forward.labels = labels, forward.logprob = logprob;
      forward.log_sum_exp = sums, forward.temperature = temperature, forward.soft_cap = soft_cap;
      chip->token_logprob(forward);
      TokenLogprobBackward op;
      op.x = x, op.weight = weight.get(), op.labels = labels, op.log_sum_exp = sums, op.dlogprob = g;
      op.dx = dx, op.dw = dw, op.temperature = temperature, op.soft_cap = soft_cap;
      chip->token_logprob_backward(op);

      const auto wide = [](const std::vector<float>& list) {
        return std::vector<double>(list.begin(), list.end());
      };
      std::vector<double> inputs[] = {wide(x.list()), wide(rows)};
      const Floats* gradients[] = {&dx, &dw};
      for (size_t which = 0; which < 2; ++which) {
        for (size_t i = 0; i < inputs[which].size(); ++i) {
          constexpr double kStep = 1e-5;
          const auto loss_at = [&](double value) {
            std::vector<double> moved = inputs[which];
            moved[i] = value;
            return plain_loss(which == 0 ? moved : inputs[0], which == 1 ? moved : inputs[1], labels.list(),
                              wide(g.list()), columns, temperature, soft_cap);
          };
          const double at = inputs[which][i];
          const double difference = (loss_at(at + kStep) - loss_at(at - kStep)) / (2 * kStep);
          // log_sum_exp is rounded to F32, and so is the gradient.
          EXPECT_NEAR(gradients[which]->data()[i], difference, 2e-6 * (1 + std::abs(difference)))
              << "input " << which << " element " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace qiao
