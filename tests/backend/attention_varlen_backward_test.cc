#include <algorithm>
#include <cmath>
#include <random>

#include "backend/op_test.h"
#include "backend/ops/attention_varlen.h"

namespace qiao {
namespace {

// Two tokens, one head of one dimension.
class AttentionVarlenBackwardTest : public ::testing::Test {
 protected:
  AttentionVarlenBackwardTest() {
    op_.q = q_, op_.k = k_, op_.v = v_, op_.starts = starts_, op_.out = out_, op_.log_sum_exp = sums_;
    op_.dout = dout_, op_.dq = dq_, op_.dk = dk_, op_.dv = dv_;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  const float ln3_ = std::log(3.0f);
  Floats q_{{2, 1, 1}, {7, 1}}, k_{{2, 1, 1}, {0, ln3_}}, v_{{2, 1, 1}, {4, 8}};
  Ints starts_{{2}, {0, 2}};
  Floats out_{{2, 1, 1}, {4, 7}}, sums_{{2, 1}, {0, std::log(4.0f)}}, dout_{{2, 1, 1}, {0, 2}};
  Floats dq_{{2, 1, 1}}, dk_{{2, 1, 1}}, dv_{{2, 1, 1}};
  AttentionVarlenBackward op_;
};

TEST_F(AttentionVarlenBackwardTest, AnExampleByHand) {
  op_.causal = true;
  chip_->attention_varlen_backward(op_);
  // Query 1: p = 1/4, 3/4; dp = 8, 16; delta = 14; ds = 1/4 * -6, 3/4 * 2. Query 0 has no gradient.
  EXPECT_FLOAT_EQ(dv_.data()[0], 0.5f);
  EXPECT_FLOAT_EQ(dv_.data()[1], 1.5f);
  EXPECT_FLOAT_EQ(dk_.data()[0], -1.5f);
  EXPECT_FLOAT_EQ(dk_.data()[1], 1.5f);
  EXPECT_FLOAT_EQ(dq_.data()[0], 0);
  EXPECT_FLOAT_EQ(dq_.data()[1], 1.5f * ln3_);
  op_.window = 1;  // of one key alone: p = 1, and no score matters
  op_.log_sum_exp.as<float>()[1] = ln3_, op_.out.as<float>()[1] = 8;
  chip_->attention_varlen_backward(op_);
  EXPECT_FLOAT_EQ(dv_.data()[0], 0);
  EXPECT_FLOAT_EQ(dv_.data()[1], 2);
  EXPECT_FLOAT_EQ(dq_.data()[1], 0);
}

// The law rounds what it is given, and leaves p and ds as they are: the bounds allow for theirs.
TEST_F(AttentionVarlenBackwardTest, InBF16RoundsWhatItMultiplies) {
  op_.causal = true, op_.compute = Compute::kBF16;
  dout_.data()[1] = 2 * (1 + 0x1p-8f);  // becomes 2, but in delta, 14 (1 + 2^-8)
  chip_->attention_varlen_backward(op_);
  const double delta = 14 * (1 + 0x1p-8), rounded_ln3 = 141.0 / 128;
  EXPECT_FLOAT_EQ(dv_.data()[0], 0.5f);
  EXPECT_FLOAT_EQ(dv_.data()[1], 1.5f);
  EXPECT_NEAR(dk_.data()[0], 0.25 * (8 - delta), 1e-6);
  EXPECT_NEAR(dk_.data()[1], 0.75 * (16 - delta), 1e-6);
  EXPECT_NEAR(dq_.data()[1], 0.75 * (16 - delta) * rounded_ln3, 1e-6);
}

TEST_F(AttentionVarlenBackwardTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(3), 10 * 3);
  EXPECT_EQ(op_.bytes(), 4 * 20);
}

TEST_F(AttentionVarlenBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  AttentionVarlenBackward op = op_;
  op.q = reshaped(q_, {2, 1});
  EXPECT_EQ(refusal(op), "attention_varlen_backward: q is F32[2, 1], expected 3 dimensions");
  op = op_, op.k = reshaped(k_, {1, 1, 2});
  EXPECT_EQ(refusal(op), "attention_varlen_backward: k is F32[1, 1, 2], expected F32[2, 1, 1]");
  op = op_, op.compute = Compute::kQ8;
  EXPECT_EQ(refusal(op),
            "attention_varlen_backward: compute is of products with weights alone, expected F32 or BF16");
  op = op_, op.dout = {};
  EXPECT_EQ(refusal(op), "attention_varlen_backward: dout is absent, expected F32[2, 1, 1]");
  op = op_, op.out = reshaped(out_, {1, 2, 1});
  EXPECT_EQ(refusal(op), "attention_varlen_backward: out is F32[1, 2, 1], expected F32[2, 1, 1]");
  op = op_, op.log_sum_exp = reshaped(sums_, {1, 2});
  EXPECT_EQ(refusal(op), "attention_varlen_backward: log_sum_exp is F32[1, 2], expected F32[2, 1]");
  op = op_, op.dk = reshaped(dk_, {1, 2, 1});
  EXPECT_EQ(refusal(op), "attention_varlen_backward: dk is F32[1, 2, 1], expected F32[2, 1, 1]");
  op = op_, op.dv = {};
  EXPECT_EQ(refusal(op), "attention_varlen_backward: dv is absent, expected F32[2, 1, 1]");
  op = op_, op.starts = reshaped(starts_, {0});
  EXPECT_EQ(refusal(op), "attention_varlen_backward: starts are empty, expected one more than sequences");
  Floats three({2, 3, 1}), four({2, 3, 1}), five({2, 3, 1}), six({2, 3, 1});
  op = op_, op.k = three, op.v = four, op.dk = five, op.dv = six;
  EXPECT_EQ(refusal(op), "attention_varlen_backward: q is F32[2, 1, 1], expected a multiple of k's 3 heads");
  op = op_, op.window = 2;
  EXPECT_EQ(refusal(op), "attention_varlen_backward: window is 2, expected 0 where attention is not causal");
  op = op_, op.scale = INFINITY;
  EXPECT_EQ(refusal(op), "attention_varlen_backward: scale is not finite");
  op = op_, op.soft_cap = NAN;
  EXPECT_EQ(refusal(op), "attention_varlen_backward: soft_cap is nan, expected 0 (none) or more");
  op = op_, op.dq = dout_;
  EXPECT_EQ(refusal(op), "attention_varlen_backward: dq F32[2, 1, 1] overlaps dout F32[2, 1, 1]");
  op = op_, op.dv = op.dk;
  EXPECT_EQ(refusal(op), "attention_varlen_backward: dv F32[2, 1, 1] overlaps dk F32[2, 1, 1]");
}

// Sequences of D-dimensional heads in float64, whose loss is sum of out * dout.
struct PlainAttention {
  std::vector<int64_t> starts;
  int64_t heads, kv_heads, width;
  double scale;
  bool causal;
  int64_t window;
  double soft_cap;
  std::vector<double> dout;

  double loss(const std::vector<double>& q, const std::vector<double>& k,
              const std::vector<double>& v) const {
    double total = 0;
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
      for (int64_t t = starts[s]; t < starts[s + 1]; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t g = h / (heads / kv_heads);
          double sum = 0, weighted = 0;
          for (int64_t j = starts[s]; j < starts[s + 1]; ++j) {
            if (causal && (j > t || (window > 0 && j <= t - window))) continue;
            double score = 0, along = 0;
            for (int64_t d = 0; d < width; ++d) {
              const auto key = static_cast<size_t>((j * kv_heads + g) * width + d);
              const auto query = static_cast<size_t>((t * heads + h) * width + d);
              score += scale * q[query] * k[key];
              along += dout[query] * v[key];
            }
            if (soft_cap > 0) score = soft_cap * std::tanh(score / soft_cap);
            sum += std::exp(score);
            weighted += std::exp(score) * along;
          }
          total += weighted / sum;
        }
      }
    }
    return total;
  }
};

TEST(AttentionVarlenBackward, IsTheFiniteDifferenceOfTheForwardPass) {
  struct Rule {
    bool causal;
    int64_t window;
    float soft_cap;
  };
  for (const Rule& rule :
       {Rule{false, 0, 0}, Rule{true, 0, 0}, Rule{true, 3, 0}, Rule{true, 0, 1.5f}, Rule{false, 0, 0.7f}}) {
    const int64_t heads = 4, kv_heads = 2, width = 3, tokens = 9;
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    Floats q({tokens, heads, width}), k({tokens, kv_heads, width}), v({tokens, kv_heads, width});
    Floats out({tokens, heads, width}), sums({tokens, heads}), dout({tokens, heads, width});
    Floats dq({tokens, heads, width}), dk({tokens, kv_heads, width}), dv({tokens, kv_heads, width});
    Ints starts({4}, {0, 2, 2, 9});
    for (const Floats* tensor : {&q, &k, &v, &dout}) {
      for (int64_t i = 0; i < tensor->tensor().elements(); ++i) tensor->data()[i] = normal(random);
    }
    const std::unique_ptr<Backend> chip = reference_chip();
    AttentionVarlen forward;
    forward.q = q, forward.k = k, forward.v = v, forward.starts = starts, forward.out = out;
    forward.log_sum_exp = sums;
    forward.scale = 0.8f, forward.causal = rule.causal, forward.window = rule.window;
    forward.soft_cap = rule.soft_cap;
    chip->attention_varlen(forward);
    AttentionVarlenBackward op;
    op.q = q, op.k = k, op.v = v, op.starts = starts, op.out = out, op.log_sum_exp = sums, op.dout = dout;
    op.dq = dq, op.dk = dk, op.dv = dv;
    op.scale = 0.8f, op.causal = rule.causal, op.window = rule.window, op.soft_cap = rule.soft_cap;
    chip->attention_varlen_backward(op);

    const auto wide = [](const Floats& tensor) {
      const std::vector<float> list = tensor.list();
      return std::vector<double>(list.begin(), list.end());
    };
    const PlainAttention plain{{0, 2, 2, 9}, heads,       kv_heads,      width,     0.8f,
                               rule.causal,  rule.window, rule.soft_cap, wide(dout)};
    std::vector<double> inputs[] = {wide(q), wide(k), wide(v)};
    const Floats* gradients[] = {&dq, &dk, &dv};
    for (size_t which = 0; which < 3; ++which) {
      for (size_t i = 0; i < inputs[which].size(); ++i) {
        constexpr double kStep = 1e-5;
        double& at = inputs[which][i];
        const double before = at;
        at = before + kStep;
        const double above = plain.loss(inputs[0], inputs[1], inputs[2]);
        at = before - kStep;
        const double below = plain.loss(inputs[0], inputs[1], inputs[2]);
        at = before;
        const double difference = (above - below) / (2 * kStep);
        // out and log_sum_exp are rounded to F32, and so is the gradient.
        EXPECT_NEAR(gradients[which]->data()[i], difference, 2e-6 * (1 + std::abs(difference)))
            << "input " << which << " element " << i << " causal " << rule.causal;
      }
    }
  }
}

}  // namespace
}  // namespace qiao
