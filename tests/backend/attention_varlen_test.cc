#include "backend/ops/attention_varlen.h"

#include <cmath>

#include "backend/op_test.h"

namespace qiao {
namespace {

// Sequences of two tokens, none and one; two query heads share a key head; D = 2.
class AttentionVarlenTest : public ::testing::Test {
 protected:
  AttentionVarlenTest() { op_.q = q_, op_.k = k_, op_.v = v_, op_.starts = starts_, op_.out = out_; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  const float ln3_ = std::log(3.0f);
  Floats q_{{3, 2, 2}, {0, 0, ln3_, 0, 0, ln3_, 0, 0, 5, 5, 5, 5}};
  Floats k_{{3, 1, 2}, {1, 0, 0, 1, 9, 9}};
  Floats v_{{3, 1, 2}, {1, 10, 5, 50, 7, 70}};
  Ints starts_{{4}, {0, 2, 2, 3}};
  Floats out_{{3, 2, 2}};
  AttentionVarlen op_;
};

TEST_F(AttentionVarlenTest, AnExampleByHand) {
  chip_->attention_varlen(op_);
  const std::vector<float> out = out_.list();
  EXPECT_FLOAT_EQ(out[0], 3);  // equal weights
  EXPECT_FLOAT_EQ(out[1], 30);
  EXPECT_FLOAT_EQ(out[2], (3 * 1 + 5) / 4.0f);  // 3 : 1; sees the key after it
  EXPECT_FLOAT_EQ(out[4], (1 + 3 * 5) / 4.0f);  // 1 : 3; and the one before
  EXPECT_FLOAT_EQ(out[8], 7);                   // alone
  EXPECT_FLOAT_EQ(out[11], 70);
  op_.scale = -1;
  chip_->attention_varlen(op_);
  EXPECT_FLOAT_EQ(out_.data()[2], (1 + 3 * 5) / 4.0f);
}

TEST_F(AttentionVarlenTest, ABiasGoesByDistanceAndHead) {
  Floats bias({2, 3},
              {0, 0, ln3_, ln3_, 0, 0});  // head 0: towards the next key; head 1: towards the one before
  op_.bias = bias;
  op_.scale = 0;
  chip_->attention_varlen(op_);
  const std::vector<float> out = out_.list();
  EXPECT_FLOAT_EQ(out[0], (1 + 3 * 5) / 4.0f);
  EXPECT_FLOAT_EQ(out[2], 3);
  EXPECT_FLOAT_EQ(out[4], 3);
  EXPECT_FLOAT_EQ(out[6], (3 * 1 + 5) / 4.0f);
}

TEST_F(AttentionVarlenTest, CausalQueriesSeeWhatIsBeforeThem) {
  Floats log_sum_exp({3, 2});
  op_.causal = true;
  op_.log_sum_exp = log_sum_exp;
  chip_->attention_varlen(op_);
  std::vector<float> out = out_.list();
  EXPECT_FLOAT_EQ(out[0], 1);  // itself alone
  EXPECT_FLOAT_EQ(out[2], 1);
  EXPECT_FLOAT_EQ(out[4], (1 + 3 * 5) / 4.0f);  // 1 : 3
  EXPECT_FLOAT_EQ(out[8], 7);
  EXPECT_FLOAT_EQ(log_sum_exp.data()[0], 0);  // scores 0; ln 3; 0 and ln 3
  EXPECT_FLOAT_EQ(log_sum_exp.data()[1], ln3_);
  EXPECT_FLOAT_EQ(log_sum_exp.data()[2], std::log(4.0f));
  EXPECT_FLOAT_EQ(log_sum_exp.data()[4], 90);
  op_.window = 1;
  chip_->attention_varlen(op_);
  EXPECT_FLOAT_EQ(out_.data()[4], 5);
  EXPECT_FLOAT_EQ(log_sum_exp.data()[2], ln3_);
}

TEST_F(AttentionVarlenTest, ASoftCapBoundsScores) {
  op_.soft_cap = 2;
  chip_->attention_varlen(op_);
  const float weight = std::exp(2 * std::tanh(ln3_ / 2));
  EXPECT_FLOAT_EQ(out_.data()[2], (weight * 1 + 5) / (weight + 1));
}

// The law rounds nothing: the bound of kBF16 allows for what a chip does.
TEST_F(AttentionVarlenTest, InBF16TheLawIsTheSame) {
  Floats log_sum_exp({3, 2});
  op_.log_sum_exp = log_sum_exp;
  q_.data()[2] = 1 + 0x1p-9f, v_.data()[0] = 1 + 0x1p-9f;
  chip_->attention_varlen(op_);
  const std::vector<float> out = out_.list(), sums = log_sum_exp.list();
  op_.compute = Compute::kBF16;
  chip_->attention_varlen(op_);
  EXPECT_EQ(out_.list(), out);
  EXPECT_EQ(log_sum_exp.list(), sums);
}

TEST_F(AttentionVarlenTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(5), 4 * 5 * 4);
  EXPECT_EQ(op_.bytes(), 4 * (12 + 6 + 6 + 12 + 4));
}

TEST_F(AttentionVarlenTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  AttentionVarlen op = op_;
  op.q = reshaped(q_, {3, 4});
  EXPECT_EQ(refusal(op), "attention_varlen: q is F32[3, 4], expected 3 dimensions");
  op = op_, op.k = reshaped(k_, {2, 1, 3});
  EXPECT_EQ(refusal(op), "attention_varlen: k is F32[2, 1, 3], expected F32[3, 1, 2]");
  op = op_, op.v = reshaped(v_, {3, 2, 1});
  EXPECT_EQ(refusal(op), "attention_varlen: v is F32[3, 2, 1], expected F32[3, 1, 2]");
  op = op_, op.out = reshaped(out_, {3, 1, 4});
  EXPECT_EQ(refusal(op), "attention_varlen: out is F32[3, 1, 4], expected F32[3, 2, 2]");
  Floats three({3, 3, 2});
  op = op_, op.k = three, op.v = three;
  EXPECT_EQ(refusal(op), "attention_varlen: q is F32[3, 2, 2], expected a multiple of k's 3 heads");
  op = op_, op.starts = reshaped(starts_, {0});
  EXPECT_EQ(refusal(op), "attention_varlen: starts are empty, expected one more than sequences");
  op = op_, op.starts = reshaped(starts_, {2, 2});
  EXPECT_EQ(refusal(op), "attention_varlen: starts is I32[2, 2], expected 1 dimensions");
  op = op_, op.scale = NAN;
  EXPECT_EQ(refusal(op), "attention_varlen: scale is not finite");
  op = op_, op.window = 3;
  EXPECT_EQ(refusal(op), "attention_varlen: window is 3, expected 0 where attention is not causal");
  op.causal = true;
  EXPECT_EQ(refusal(op), "");
  op.window = -1;
  EXPECT_EQ(refusal(op), "attention_varlen: window is -1, expected 0 (unlimited) or more");
  op = op_, op.soft_cap = -1;
  EXPECT_EQ(refusal(op), "attention_varlen: soft_cap is -1, expected 0 (none) or more");
  op = op_, op.compute = Compute::kF8;
  EXPECT_EQ(refusal(op), "attention_varlen: compute is of products with weights alone, expected F32 or BF16");
  Floats sums({3, 2});
  op = op_, op.log_sum_exp = reshaped(sums, {2, 3});
  EXPECT_EQ(refusal(op), "attention_varlen: log_sum_exp is F32[2, 3], expected F32[3, 2]");
  op.log_sum_exp = reshaped(out_, {3, 2});
  EXPECT_EQ(refusal(op), "attention_varlen: log_sum_exp F32[3, 2] overlaps out F32[3, 2, 2]");
  Floats bias({2, 4});
  op = op_, op.bias = bias;
  EXPECT_EQ(refusal(op), "attention_varlen: bias is F32[2, 4], expected an odd number of distances");
  op = op_, op.bias = reshaped(bias, {1, 7});
  EXPECT_EQ(refusal(op), "attention_varlen: bias is F32[1, 7], expected F32[2, 7]");
  op = op_, op.out = q_;
  EXPECT_EQ(refusal(op), "attention_varlen: out F32[3, 2, 2] overlaps q F32[3, 2, 2]");
}

}  // namespace
}  // namespace qiao
