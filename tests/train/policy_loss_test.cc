// The losses against PyTorch's, against central differences, and by hand.
#include "train/policy_loss.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "base/json.h"

namespace qiao::train {
namespace {

using Values = std::vector<double>;

struct LossCase {
  PolicyLoss loss;
  PolicyLoss::Totals totals;
  std::vector<Values> logprob, old, reference;
  Values advantages;

  PolicyLoss::Result of(size_t i, Values& gradient) const {
    gradient.assign(logprob[i].size(), 0);
    const Values none;
    return loss.of({.logprob = logprob[i],
                    .old = old[i],
                    .reference = loss.beta > 0 ? reference[i] : none,
                    .advantage = advantages[i]},
                   totals, gradient);
  }
  double whole() const {
    double sum = 0;
    Values unused;
    for (size_t i = 0; i < logprob.size(); ++i) sum += of(i, unused).loss;
    return sum;
  }
};

Json golden_losses() {
  return parse_json(
      read_file(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "training" / "policy_loss.json"),
      "policy_loss.json")["cases"];
}

LossCase read_case(const Json& json) {
  LossCase c;
  c.loss.kind = json["kind"] == "grpo"   ? PolicyLossKind::kGrpo
                : json["kind"] == "dapo" ? PolicyLossKind::kDapo
                                         : PolicyLossKind::kGspo;
  c.loss.clip_low = json["clip_low"], c.loss.clip_high = json["clip_high"], c.loss.beta = json["beta"];
  c.logprob = json["logprob"].get<std::vector<Values>>();
  c.old = json["old"].get<std::vector<Values>>();
  c.reference = json["reference"].get<std::vector<Values>>();
  c.advantages = json["advantages"].get<Values>();
  c.totals.sequences = std::ssize(c.logprob);
  for (const Values& sequence : c.logprob) c.totals.tokens += std::ssize(sequence);
  return c;
}

TEST(PolicyLossTest, IsPyTorchs) {
  const Json cases = golden_losses();
  ASSERT_EQ(cases.size(), 12u);
  int64_t clipped = 0;
  for (const Json& json : cases) {
    const LossCase c = read_case(json);
    EXPECT_NEAR(c.whole(), json["loss"].get<double>(), 1e-13) << json["kind"];
    for (size_t i = 0; i < c.logprob.size(); ++i) {
      Values gradient;
      clipped += c.of(i, gradient).clipped;
      for (size_t t = 0; t < gradient.size(); ++t)
        EXPECT_NEAR(gradient[t], json["gradient"][i][t].get<double>(), 1e-13) << json["kind"];
    }
  }
  EXPECT_GT(clipped, 20);  // the cases have what is clipped in them
}

TEST(PolicyLossTest, AdvantagesArePyTorchs) {
  for (const Json& json : golden_losses()) {
    const auto rewards = json["rewards"].get<Values>(), expected = json["advantages"].get<Values>();
    const size_t group = json["group"];
    for (size_t first = 0; first < rewards.size(); first += group) {
      const Values ours = group_advantages(std::span(rewards).subspan(first, group), json["advantage_std"]);
      for (size_t i = 0; i < group; ++i) EXPECT_NEAR(ours[i], expected[first + i], 1e-12);
    }
  }
}

TEST(PolicyLossTest, TheGradientIsTheDifference) {
  constexpr double kStep = 1e-6;
  for (const Json& json : golden_losses()) {
    LossCase c = read_case(json);
    for (size_t i = 0; i < c.logprob.size(); ++i) {
      Values gradient, unused;
      c.of(i, gradient);
      for (size_t t = 0; t < gradient.size(); ++t) {
        const double at = c.logprob[i][t];
        c.logprob[i][t] = at + kStep;
        const double above = c.of(i, unused).loss;
        c.logprob[i][t] = at - kStep;
        const double below = c.of(i, unused).loss;
        c.logprob[i][t] = at;
        EXPECT_NEAR(gradient[t], (above - below) / (2 * kStep), 1e-8) << json["kind"];
      }
    }
  }
}

// The first update of a rollout: every ratio is 1, the loss is minus the mean advantage.
TEST(PolicyLossTest, BeforeTheFirstUpdateEveryRatioIsOne) {
  PolicyLoss loss;
  const Values logprob{-1.5, -0.25};
  Values gradient(2);
  const PolicyLoss::Result result =
      loss.of({.logprob = logprob, .old = logprob, .reference = {}, .advantage = 3},
              {.sequences = 2, .tokens = 5}, gradient);
  EXPECT_DOUBLE_EQ(result.loss, -1.5);
  EXPECT_THAT(gradient, ::testing::ElementsAre(-0.75, -0.75));
  EXPECT_EQ(result.clipped, 0);
}

TEST(PolicyLossTest, AGroupOfEqualRewardsTeachesNothing) {
  EXPECT_THAT(group_advantages(Values{0.1, 0.1, 0.1}, true), ::testing::ElementsAre(0, 0, 0));
  EXPECT_THAT(group_advantages(Values{1, 3}, false), ::testing::ElementsAre(-1, 1));
}

TEST(PolicyLossTest, WhatIsTooLongIsPunishedSoftly) {
  EXPECT_EQ(overlong_punishment(80, 100, 20), 0);
  EXPECT_DOUBLE_EQ(overlong_punishment(90, 100, 20), -0.5);
  EXPECT_DOUBLE_EQ(overlong_punishment(100, 100, 20), -1);
  EXPECT_DOUBLE_EQ(overlong_punishment(130, 100, 20), -1);
  EXPECT_EQ(overlong_punishment(130, 100, 0), 0);
}

}  // namespace
}  // namespace qiao::train
