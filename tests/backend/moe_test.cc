#include "backend/ops/moe.h"

#include <cmath>

#include "backend/op_test.h"

namespace qiao {
namespace {

class MoeRouteTest : public ::testing::Test {
 protected:
  MoeRouteTest() { op_.logits = logits_, op_.ids = ids_, op_.weights = weights_; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  // Softmax of log(1), log(3), log(4), log(2): tenths.
  Floats logits_{{1, 4}, {0, std::log(3.0f), std::log(4.0f), std::log(2.0f)}};
  Ints ids_{{1, 2}};
  Floats weights_{{1, 2}};
  MoeRoute op_;
};

TEST_F(MoeRouteTest, SoftmaxByHand) {
  chip_->moe_route(op_);
  EXPECT_THAT(ids_.list(), ::testing::ElementsAre(2, 1));
  EXPECT_FLOAT_EQ(weights_.data()[0], 0.4f);
  EXPECT_FLOAT_EQ(weights_.data()[1], 0.3f);
  op_.normalize = true, op_.scale = 7;
  chip_->moe_route(op_);
  EXPECT_FLOAT_EQ(weights_.data()[0], 4);
  EXPECT_FLOAT_EQ(weights_.data()[1], 3);
}

TEST_F(MoeRouteTest, SigmoidByHand) {
  op_.kind = MoeRoute::Kind::kSigmoid;
  chip_->moe_route(op_);
  EXPECT_FLOAT_EQ(weights_.data()[0], 0.8f);
  EXPECT_FLOAT_EQ(weights_.data()[1], 0.75f);
}

TEST_F(MoeRouteTest, TheSmallerOfEqualsFirst) {
  for (int i = 0; i < 4; ++i) logits_.data()[i] = i == 0 ? -1.0f : 2.0f;
  chip_->moe_route(op_);
  EXPECT_THAT(ids_.list(), ::testing::ElementsAre(1, 2));
}

TEST_F(MoeRouteTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  MoeRoute op = op_;
  op.logits = reshaped(logits_, {4});
  EXPECT_EQ(refusal(op), "moe_route: logits is F32[4], expected 2 dimensions");
  op = op_, op.logits = reshaped(logits_, {2, 2});
  EXPECT_EQ(refusal(op), "moe_route: ids is I32[1, 2], expected I32[2, 2]");
  op = op_, op.logits = reshaped(logits_, {1, 1});
  EXPECT_EQ(refusal(op), "moe_route: ids is I32[1, 2], expected from 1 to 1 picks of logits F32[1, 1]");
  op = op_, op.ids.dtype = DType::kI64;
  EXPECT_EQ(refusal(op), "moe_route: ids is I64[1, 2], expected I32[1, 2]");
  op = op_, op.weights = reshaped(weights_, {2, 1});
  EXPECT_EQ(refusal(op), "moe_route: weights is F32[2, 1], expected F32[1, 2]");
  op = op_, op.weights = reshaped(logits_, {1, 2});
  EXPECT_EQ(refusal(op), "moe_route: weights F32[1, 2] overlaps logits F32[1, 4]");
  op = op_, op.weights.data = ids_.data();
  EXPECT_EQ(refusal(op), "moe_route: weights F32[1, 2] overlaps ids I32[1, 2]");
  op = op_, op.scale = NAN;
  EXPECT_EQ(refusal(op), "moe_route: scale is not finite");
}

class MoePermuteTest : public ::testing::Test {
 protected:
  MoePermuteTest() { op_ = {x_, ids_, sorted_, counts_, places_, {}}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats x_{{2, 1}, {10, 20}};
  Ints ids_{{2, 2}, {2, 0, 0, 3}};
  Floats sorted_{{4, 1}};
  Ints counts_{{4}};
  Ints places_{{2, 2}};
  MoePermute op_;
};

TEST_F(MoePermuteTest, AnExampleByHand) {
  chip_->moe_permute(op_);
  // Expert 0 has tokens 0 and 1, expert 2 token 0, expert 3 token 1.
  EXPECT_THAT(sorted_.list(), ::testing::ElementsAre(10, 20, 10, 20));
  EXPECT_THAT(counts_.list(), ::testing::ElementsAre(2, 0, 1, 1));
  EXPECT_THAT(places_.list(), ::testing::ElementsAre(2, 0, 1, 3));
}

TEST_F(MoePermuteTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  MoePermute op = op_;
  op.x = reshaped(x_, {1, 2});
  EXPECT_EQ(refusal(op), "moe_permute: ids is I32[2, 2], expected I32[1, 2]");
  op = op_, op.sorted = reshaped(sorted_, {2, 2});
  EXPECT_EQ(refusal(op), "moe_permute: sorted is F32[2, 2], expected F32[4, 1]");
  op = op_, op.counts = {};
  EXPECT_EQ(refusal(op), "moe_permute: counts is absent");
  op = op_, op.counts = counts_.tensor().slice(0, 0);
  EXPECT_EQ(refusal(op), "moe_permute: counts is I32[0], expected one for each expert");
  op = op_, op.places = reshaped(places_, {4, 1});
  EXPECT_EQ(refusal(op), "moe_permute: places is I32[4, 1], expected I32[2, 2]");
  op = op_, op.places = ids_;
  EXPECT_EQ(refusal(op), "moe_permute: places I32[2, 2] overlaps ids I32[2, 2]");
  op = op_, op.x = reshaped(sorted_, {2, 1});
  EXPECT_EQ(refusal(op), "moe_permute: sorted F32[4, 1] overlaps x F32[2, 1]");
}

class MoeCombineTest : public ::testing::Test {
 protected:
  MoeCombineTest() { op_ = {sorted_, places_, weights_, residual_, y_}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats sorted_{{4, 1}, {1, 2, 3, 4}};
  Ints places_{{2, 2}, {2, 0, 1, 3}};
  Floats weights_{{2, 2}, {0.5, 10, 100, -1}};
  Floats residual_{{2, 1}, {1000, 2000}};
  Floats y_{{2, 1}};
  MoeCombine op_;
};

TEST_F(MoeCombineTest, AnExampleByHand) {
  chip_->moe_combine(op_);
  EXPECT_THAT(y_.list(), ::testing::ElementsAre(1011.5f, 2196));
  op_.residual = {};
  chip_->moe_combine(op_);
  EXPECT_THAT(y_.list(), ::testing::ElementsAre(11.5f, 196));
}

TEST_F(MoeCombineTest, YMayBeTheResidual) {
  op_.y = residual_;
  chip_->moe_combine(op_);
  EXPECT_THAT(residual_.list(), ::testing::ElementsAre(1011.5f, 2196));
}

TEST_F(MoeCombineTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  MoeCombine op = op_;
  op.sorted = reshaped(sorted_, {2, 2});
  EXPECT_EQ(refusal(op), "moe_combine: sorted is F32[2, 2], expected F32[4, 1]");
  op = op_, op.weights = reshaped(weights_, {4, 1});
  EXPECT_EQ(refusal(op), "moe_combine: weights is F32[4, 1], expected F32[2, 2]");
  op = op_, op.places = {};
  EXPECT_EQ(refusal(op), "moe_combine: places is absent");
  op = op_, op.residual = reshaped(residual_, {1, 2});
  EXPECT_EQ(refusal(op), "moe_combine: residual is F32[1, 2], expected F32[2, 1]");
  op = op_, op.y = reshaped(sorted_, {2, 1});
  EXPECT_EQ(refusal(op), "moe_combine: y F32[2, 1] overlaps sorted F32[4, 1]");
}

}  // namespace
}  // namespace qiao
