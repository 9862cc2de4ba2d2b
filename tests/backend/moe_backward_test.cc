// The ways back of routing, permuting and combining: by hand, against differences in float64, and what they
// refuse.
#include <cmath>
#include <random>

#include "backend/op_test.h"
#include "backend/ops/moe.h"

namespace qiao {
namespace {

class MoeRouteBackwardTest : public ::testing::Test {
 protected:
  MoeRouteBackwardTest() {
    op_.logits = logits_, op_.ids = ids_, op_.dweights = dweights_, op_.dlogits = dlogits_;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  // Softmax of log(1), log(3), log(4), log(2): tenths. Sigmoids: 1/2, 3/4, 4/5, 2/3.
  Floats logits_{{1, 4}, {0, std::log(3.0f), std::log(4.0f), std::log(2.0f)}};
  Ints ids_{{1, 2}, {2, 1}};
  Floats dweights_{{1, 2}, {10, -20}};
  Floats dlogits_{{1, 4}, {7, 7, 7, 7}};
  MoeRouteBackward op_;

  void expect(std::vector<float> expected) {
    chip_->moe_route_backward(op_);
    for (size_t e = 0; e < 4; ++e)  // the logits are rounded
      EXPECT_NEAR(dlogits_.data()[e], expected[e], 1e-6f * std::max(1.0f, std::abs(expected[e]))) << e;
  }
};

TEST_F(MoeRouteBackwardTest, SoftmaxByHand) {
  // S = 0.4 * 10 - 0.3 * 20 = -2
  expect({0.1f * 2, 0.3f * (-20 + 2), 0.4f * (10 + 2), 0.2f * 2});
  op_.scale = 0.5f;
  expect({0.1f, 0.3f * -9, 0.4f * 6, 0.2f});
}

TEST_F(MoeRouteBackwardTest, SoftmaxOfThePicksByHand) {
  op_.normalize = true, op_.scale = 7;  // q = 4/7 and 3/7, S = 40 - 60
  expect({0, 3.0f / 7 * (-140 + 20), 4.0f / 7 * (70 + 20), 0});
}

TEST_F(MoeRouteBackwardTest, SigmoidByHand) {
  op_.kind = MoeRoute::Kind::kSigmoid;
  expect({0, 0.75f * 0.25f * -20, 0.8f * 0.2f * 10, 0});
  op_.normalize = true;  // the sum is 1.55, S = (8 - 15) / 1.55
  const float mean = -7 / 1.55f;
  expect({0, 0.75f / 1.55f * 0.25f * (-20 - mean), 0.8f / 1.55f * 0.2f * (10 - mean), 0});
}

// loss = sum of c * weights^2, by each kind's formula in float64.
TEST_F(MoeRouteBackwardTest, IsTheDerivativeOfTheRoute) {
  constexpr size_t kTokens = 2, kExperts = 5, kPicks = 3;
  constexpr float kScale = 1.5f;
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> logits(kTokens * kExperts), c(kTokens * kPicks);
  for (float& v : logits) v = normal(random);
  for (float& v : c) v = normal(random);
  const std::vector<int32_t> ids = {4, 0, 2, 1, 3, 4};
  for (const bool sigmoid : {false, true}) {
    for (const bool normalize : {false, true}) {
      const auto weights_of = [&](const std::vector<double>& at) {
        std::vector<double> weights;
        for (size_t t = 0; t < kTokens; ++t) {
          double all = 0, picked = 0;
          std::vector<double> scores;
          for (size_t e = 0; e < kExperts; ++e) {
            const double x = at[t * kExperts + e];
            scores.push_back(sigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x));
            all += scores.back();
          }
          for (size_t j = 0; j < kPicks; ++j) picked += scores[static_cast<size_t>(ids[t * kPicks + j])];
          for (size_t j = 0; j < kPicks; ++j) {
            const double divisor = normalize ? picked : sigmoid ? 1 : all;
            weights.push_back(kScale * scores[static_cast<size_t>(ids[t * kPicks + j])] / divisor);
          }
        }
        return weights;
      };
      const auto loss = [&](const std::vector<double>& at) {
        double sum = 0;
        const std::vector<double> weights = weights_of(at);
        for (size_t i = 0; i < c.size(); ++i) sum += static_cast<double>(c[i]) * weights[i] * weights[i];
        return sum;
      };
      const std::vector<double> at = as_doubles(logits), weights = weights_of(at);
      Floats dweights({kTokens, kPicks}), dlogits({kTokens, kExperts});
      for (size_t i = 0; i < c.size(); ++i)
        dweights.data()[i] = static_cast<float>(2 * static_cast<double>(c[i]) * weights[i]);
      const Floats logits_tensor({kTokens, kExperts}, logits);
      const Ints ids_tensor({kTokens, kPicks}, ids);
      MoeRouteBackward op;
      op.kind = sigmoid ? MoeRoute::Kind::kSigmoid : MoeRoute::Kind::kSoftmax;
      op.normalize = normalize, op.scale = kScale;
      op.logits = logits_tensor, op.ids = ids_tensor, op.dweights = dweights, op.dlogits = dlogits;
      chip_->moe_route_backward(op);
      for (size_t i = 0; i < logits.size(); ++i) {
        EXPECT_NEAR(dlogits.data()[i], difference_quotient(loss, at, i), 2e-6)
            << i << (sigmoid ? " sigmoid" : " softmax") << (normalize ? " normalised" : "");
      }
    }
  }
}

TEST_F(MoeRouteBackwardTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 8 * 4 + 4 * 2);
  EXPECT_EQ(op_.bytes(), 4 * (4 + 2 + 2 + 4));
}

TEST_F(MoeRouteBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  MoeRouteBackward op = op_;
  op.logits = reshaped(logits_, {4});
  EXPECT_EQ(refusal(op), "moe_route_backward: logits is F32[4], expected 2 dimensions");
  op = op_, op.ids = reshaped(ids_, {2});
  EXPECT_EQ(refusal(op), "moe_route_backward: ids is I32[2], expected 2 dimensions");
  op = op_, op.logits = reshaped(logits_, {1, 1});
  EXPECT_EQ(refusal(op),
            "moe_route_backward: ids is I32[1, 2], expected from 1 to 1 picks of logits F32[1, 1]");
  op = op_, op.ids.dtype = DType::kF32;
  EXPECT_EQ(refusal(op), "moe_route_backward: ids is F32[1, 2], expected I32[1, 2]");
  op = op_, op.dweights = reshaped(dweights_, {2, 1});
  EXPECT_EQ(refusal(op), "moe_route_backward: dweights is F32[2, 1], expected F32[1, 2]");
  op = op_, op.dlogits = reshaped(dlogits_, {1, 3});
  EXPECT_EQ(refusal(op), "moe_route_backward: dlogits is F32[1, 3], expected F32[1, 4]");
  op = op_, op.scale = INFINITY;
  EXPECT_EQ(refusal(op), "moe_route_backward: scale is not finite");
  op = op_, op.dlogits = logits_;
  EXPECT_EQ(refusal(op), "moe_route_backward: dlogits F32[1, 4] overlaps logits F32[1, 4]");
  op = op_, op.ids.data = dlogits_.data();
  EXPECT_EQ(refusal(op), "moe_route_backward: dlogits F32[1, 4] overlaps ids I32[1, 2]");
  op = op_, op.dweights.data = dlogits_.data();
  EXPECT_EQ(refusal(op), "moe_route_backward: dlogits F32[1, 4] overlaps dweights F32[1, 2]");
}

class MoePermuteBackwardTest : public ::testing::Test {
 protected:
  MoePermuteBackwardTest() { op_ = {dsorted_, places_, dx_, false}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats dsorted_{{4, 1}, {1, 10, 100, 1000}};
  Ints places_{{2, 2}, {2, 0, 1, 3}};
  Floats dx_{{2, 1}, {5, -5}};
  MoePermuteBackward op_;
};

TEST_F(MoePermuteBackwardTest, AnExampleByHand) {
  chip_->moe_permute_backward(op_);
  EXPECT_THAT(dx_.list(), ::testing::ElementsAre(101, 1010));
  op_.add_dx = true;
  chip_->moe_permute_backward(op_);
  EXPECT_THAT(dx_.list(), ::testing::ElementsAre(202, 2020));
}

TEST_F(MoePermuteBackwardTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 4 - 2);
  EXPECT_EQ(op_.bytes(), 4 * (4 + 4 + 2));
  op_.add_dx = true;
  EXPECT_EQ(op_.flops(), 4);
  EXPECT_EQ(op_.bytes(), 4 * (4 + 4 + 2 * 2));
}

TEST_F(MoePermuteBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  MoePermuteBackward op = op_;
  op.dx = {};
  EXPECT_EQ(refusal(op), "moe_permute_backward: dx is absent");
  op = op_, op.dx = reshaped(dx_, {1, 2});
  EXPECT_EQ(refusal(op), "moe_permute_backward: places is I32[2, 2], expected I32[1, 2]");
  op = op_, op.places = {};
  EXPECT_EQ(refusal(op), "moe_permute_backward: places is absent");
  op = op_, op.dsorted = reshaped(dsorted_, {2, 2});
  EXPECT_EQ(refusal(op), "moe_permute_backward: dsorted is F32[2, 2], expected F32[4, 1]");
  op = op_, op.dx = reshaped(dsorted_, {2, 1});
  EXPECT_EQ(refusal(op), "moe_permute_backward: dx F32[2, 1] overlaps dsorted F32[4, 1]");
  op = op_, op.dx.data = places_.data();
  EXPECT_EQ(refusal(op), "moe_permute_backward: dx F32[2, 1] overlaps places I32[2, 2]");
}

class MoeCombineBackwardTest : public ::testing::Test {
 protected:
  MoeCombineBackwardTest() { op_ = {dy_, sorted_, places_, weights_, dsorted_, dweights_}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats dy_{{2, 2}, {1, 2, 3, 4}};
  Floats sorted_{{4, 2}, {1, 0, 0, 10, 5, 5, -1, 2}};
  Ints places_{{2, 2}, {2, 0, 1, 3}};
  Floats weights_{{2, 2}, {0.5, 10, 100, -1}};
  Floats dsorted_{{4, 2}};
  Floats dweights_{{2, 2}};
  MoeCombineBackward op_;
};

TEST_F(MoeCombineBackwardTest, AnExampleByHand) {
  chip_->moe_combine_backward(op_);
  EXPECT_THAT(dsorted_.list(), ::testing::ElementsAre(10, 20, 300, 400, 0.5f, 1, -3, -4));
  EXPECT_THAT(dweights_.list(), ::testing::ElementsAre(5 + 10, 1, 40, -3 + 8));
}

// loss = sum of c * y^2 with y as combine has it, and combine of permuted tokens with permute's way back.
TEST_F(MoeCombineBackwardTest, IsTheDerivativeOfCombineAndPermute) {
  constexpr size_t kTokens = 3, kPicks = 2, kColumns = 4;
  const std::vector<int32_t> places = {5, 1, 0, 3, 4, 2};
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> c(kTokens * kColumns), x(kTokens * kColumns), weights(kTokens * kPicks);
  for (auto* values : {&c, &x, &weights})
    for (float& v : *values) v = normal(random);
  // sorted = x[t] at places[t, j]; y = sum of weights * sorted^2, so that every place has a slope of its own.
  const auto y_of = [&](const std::vector<double>& x_at, const std::vector<double>& w_at) {
    std::vector<double> y(kTokens * kColumns);
    for (size_t t = 0; t < kTokens; ++t)
      for (size_t j = 0; j < kPicks; ++j)
        for (size_t k = 0; k < kColumns; ++k) {
          const double inner = x_at[t * kColumns + k];
          y[t * kColumns + k] += w_at[t * kPicks + j] * inner * inner * static_cast<double>(j + 1);
        }
    return y;
  };
  const auto loss = [&](const std::vector<double>& x_at, const std::vector<double>& w_at) {
    double sum = 0;
    const std::vector<double> y = y_of(x_at, w_at);
    for (size_t i = 0; i < c.size(); ++i) sum += static_cast<double>(c[i]) * y[i] * y[i];
    return sum;
  };
  const std::vector<double> xs = as_doubles(x), ws = as_doubles(weights), ys = y_of(xs, ws);
  Floats dy({kTokens, kColumns}), sorted({kTokens * kPicks, kColumns}), dsorted({kTokens * kPicks, kColumns}),
      dweights({kTokens, kPicks}), dx({kTokens, kColumns});
  const Floats weights_tensor({kTokens, kPicks}, weights);
  const Ints places_tensor({kTokens, kPicks}, places);
  for (size_t i = 0; i < c.size(); ++i)
    dy.data()[i] = static_cast<float>(2 * static_cast<double>(c[i]) * ys[i]);
  const auto place_of = [&](size_t t, size_t j, size_t k) {
    return static_cast<size_t>(places[t * kPicks + j]) * kColumns + k;
  };
  for (size_t t = 0; t < kTokens; ++t)
    for (size_t j = 0; j < kPicks; ++j)
      for (size_t k = 0; k < kColumns; ++k) {
        const float inner = x[t * kColumns + k];
        sorted.data()[place_of(t, j, k)] = inner * inner * static_cast<float>(j + 1);
      }
  chip_->moe_combine_backward({dy, sorted, places_tensor, weights_tensor, dsorted, dweights});
  for (size_t t = 0; t < kTokens; ++t)  // through the square
    for (size_t j = 0; j < kPicks; ++j)
      for (size_t k = 0; k < kColumns; ++k)
        dsorted.data()[place_of(t, j, k)] *= 2 * x[t * kColumns + k] * static_cast<float>(j + 1);
  chip_->moe_permute_backward({dsorted, places_tensor, dx, false});
  for (size_t i = 0; i < x.size(); ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(at, ws); }, xs, i);
    EXPECT_NEAR(dx.data()[i], slope, 4e-6 * std::max(1.0, std::abs(slope))) << i;
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    const double slope = difference_quotient([&](const auto& at) { return loss(xs, at); }, ws, i);
    EXPECT_NEAR(dweights.data()[i], slope, 4e-6 * std::max(1.0, std::abs(slope))) << i;
  }
}

TEST_F(MoeCombineBackwardTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 3 * 8);
  EXPECT_EQ(op_.bytes(), 4 * (4 + 2 * 8 + 4 + 2 * 4));
}

TEST_F(MoeCombineBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  MoeCombineBackward op = op_;
  op.dy = {};
  EXPECT_EQ(refusal(op), "moe_combine_backward: dy is absent");
  op = op_, op.dy = reshaped(dy_, {1, 4});
  EXPECT_EQ(refusal(op), "moe_combine_backward: places is I32[2, 2], expected I32[1, 2]");
  op = op_, op.places = {};
  EXPECT_EQ(refusal(op), "moe_combine_backward: places is absent");
  op = op_, op.weights = reshaped(weights_, {4, 1});
  EXPECT_EQ(refusal(op), "moe_combine_backward: weights is F32[4, 1], expected F32[2, 2]");
  op = op_, op.sorted = reshaped(sorted_, {2, 4});
  EXPECT_EQ(refusal(op), "moe_combine_backward: sorted is F32[2, 4], expected F32[4, 2]");
  op = op_, op.dsorted = reshaped(dsorted_, {2, 4});
  EXPECT_EQ(refusal(op), "moe_combine_backward: dsorted is F32[2, 4], expected F32[4, 2]");
  op = op_, op.dweights = {};
  EXPECT_EQ(refusal(op), "moe_combine_backward: dweights is absent, expected F32[2, 2]");
}

TEST_F(MoeCombineBackwardTest, RefusesOverlap) {
  const auto overlaps = [&](Tensor MoeCombineBackward::*result, Tensor MoeCombineBackward::*other) {
    MoeCombineBackward op = op_;
    (op.*result).data = (op.*other).data;
    return refusal(op);
  };
  EXPECT_EQ(overlaps(&MoeCombineBackward::dsorted, &MoeCombineBackward::dy),
            "moe_combine_backward: dsorted F32[4, 2] overlaps dy F32[2, 2]");
  EXPECT_EQ(overlaps(&MoeCombineBackward::dsorted, &MoeCombineBackward::sorted),
            "moe_combine_backward: dsorted F32[4, 2] overlaps sorted F32[4, 2]");
  EXPECT_EQ(overlaps(&MoeCombineBackward::dsorted, &MoeCombineBackward::places),
            "moe_combine_backward: dsorted F32[4, 2] overlaps places I32[2, 2]");
  EXPECT_EQ(overlaps(&MoeCombineBackward::dsorted, &MoeCombineBackward::weights),
            "moe_combine_backward: dsorted F32[4, 2] overlaps weights F32[2, 2]");
  EXPECT_EQ(overlaps(&MoeCombineBackward::dsorted, &MoeCombineBackward::dweights),
            "moe_combine_backward: dsorted F32[4, 2] overlaps dweights F32[2, 2]");
  EXPECT_EQ(overlaps(&MoeCombineBackward::dweights, &MoeCombineBackward::dy),
            "moe_combine_backward: dweights F32[2, 2] overlaps dy F32[2, 2]");
  EXPECT_EQ(overlaps(&MoeCombineBackward::dweights, &MoeCombineBackward::sorted),
            "moe_combine_backward: dweights F32[2, 2] overlaps sorted F32[4, 2]");
  EXPECT_EQ(overlaps(&MoeCombineBackward::dweights, &MoeCombineBackward::places),
            "moe_combine_backward: dweights F32[2, 2] overlaps places I32[2, 2]");
  EXPECT_EQ(overlaps(&MoeCombineBackward::dweights, &MoeCombineBackward::weights),
            "moe_combine_backward: dweights F32[2, 2] overlaps weights F32[2, 2]");
}

}  // namespace
}  // namespace qiao
