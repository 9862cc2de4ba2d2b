// Steps planned while another one is under way: prompts, admissions and forced tokens in them.
#include <gtest/gtest.h>

#include <random>

#include "infer/toy_machine.h"

namespace qiao::testing {
namespace {

std::vector<int64_t> counts(const std::vector<StepEntry>& plan) {
  std::vector<int64_t> list;
  for (const StepEntry& entry : plan) list.push_back(entry.count);
  return list;
}

TEST(SchedulerAheadTest, APromptGoesOnAndThenDecodes) {
  Machine machine{{.slots = 2, .batch_tokens = 8}, 32, 4};
  const auto job = toy_job(std::vector<TokenId>(18, 1), 3);
  machine.scheduler.enqueue(job);
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan()));
  for (const int64_t expected : {8, 2, 1, 1}) {
    const std::vector<StepEntry>& plan = machine.scheduler.plan_ahead();
    EXPECT_EQ(counts(plan), std::vector<int64_t>{expected});
    EXPECT_EQ(job->decodes(), expected == 1);
    ASSERT_NO_FATAL_FAILURE(machine.give(plan));
    ASSERT_NO_FATAL_FAILURE(machine.land());
  }
  EXPECT_TRUE(machine.scheduler.plan_ahead().empty());  // what is under way is the last token's draw
  ASSERT_NO_FATAL_FAILURE(machine.land());
  EXPECT_TRUE(job->finished);
  EXPECT_TRUE(machine.scheduler.idle());
  EXPECT_EQ(job->tokens, generated_alone(std::vector<TokenId>(18, 1), 3));
}

TEST(SchedulerAheadTest, WhoWaitsIsAdmittedBesideThoseThatDecode) {
  Machine machine{{.slots = 3, .batch_tokens = 10}, 32, 4};
  const auto first = toy_job(std::vector<TokenId>(6, 7), 9);
  machine.scheduler.enqueue(first);
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan()));
  const auto second = toy_job(std::vector<TokenId>(7, 8), 1), third = toy_job(std::vector<TokenId>(7, 9), 1),
             fourth = toy_job(std::vector<TokenId>(2, 9), 1);
  for (const auto& job : {second, third, fourth}) machine.scheduler.enqueue(job);
  const std::vector<StepEntry>& plan = machine.scheduler.plan_ahead();
  EXPECT_EQ(counts(plan), (std::vector<int64_t>{1, 7, 2}));
  EXPECT_EQ(plan.at(0).job, first.get());
  EXPECT_EQ(plan.at(1).job, second.get());
  EXPECT_EQ(plan.at(2).job, third.get());
  EXPECT_EQ(machine.scheduler.stats().waiting, 1);  // for a slot
}

// The step that is given while one ends is without who waits for its pages; the next one is not.
TEST(SchedulerAheadTest, PagesOfWhoLeavesAreThereWhenItsStepHasEnded) {
  Machine machine{{.slots = 3, .batch_tokens = 100, .prefix_cache = false}, 9, 4};
  const auto ends = toy_job(std::vector<TokenId>(16, 1), 1), goes_on = toy_job(std::vector<TokenId>(4, 2), 9),
             waits = toy_job(std::vector<TokenId>(12, 3), 1);
  for (const auto& job : {ends, goes_on, waits}) machine.scheduler.enqueue(job);
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan()));
  EXPECT_EQ(machine.scheduler.stats().waiting, 1);
  EXPECT_EQ(counts(machine.scheduler.plan_ahead()), std::vector<int64_t>{1});
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan_ahead()));
  ASSERT_NO_FATAL_FAILURE(machine.land());
  EXPECT_EQ(counts(machine.scheduler.plan_ahead()), (std::vector<int64_t>{1, 12}));
}

TEST(SchedulerAheadTest, NobodyIsPreemptedBeforeTheStepHasEnded) {
  Machine machine{{.slots = 2, .batch_tokens = 100, .prefix_cache = false}, 6, 4};
  const auto oldest = toy_job(std::vector<TokenId>(8, 1), 16),
             youngest = toy_job(std::vector<TokenId>(8, 2), 16);
  machine.scheduler.enqueue(oldest);
  machine.scheduler.enqueue(youngest);
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan()));
  int given = 0;
  for (; !machine.scheduler.plan_ahead().empty(); ++given) {
    ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan_ahead()));
    ASSERT_NO_FATAL_FAILURE(machine.land());
  }
  EXPECT_EQ(given, 4);  // their third pages
  EXPECT_EQ(machine.scheduler.stats().preemptions, 0);
  ASSERT_NO_FATAL_FAILURE(machine.land());
  EXPECT_EQ(counts(machine.scheduler.plan()), std::vector<int64_t>{1});
  EXPECT_EQ(youngest->preemptions, 1);
}

// Pages are shared when what fills them has ended: until then it may fail.
TEST(SchedulerAheadTest, NoPageOfAStepUnderWayIsShared) {
  Machine machine{{.slots = 2, .batch_tokens = 8}, 32, 4};
  const auto first = toy_job(std::vector<TokenId>(20, 1), 1),
             second = toy_job(std::vector<TokenId>(20, 1), 1);
  machine.scheduler.enqueue(first);
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan()));
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan_ahead()));
  EXPECT_EQ(machine.pools.full.cached(), 0);
  ASSERT_NO_FATAL_FAILURE(machine.land());
  EXPECT_EQ(machine.pools.full.cached(), 2);
  machine.scheduler.enqueue(second);
  EXPECT_EQ(counts(machine.scheduler.plan_ahead()), (std::vector<int64_t>{4, 4}));
  EXPECT_EQ(second->cached_tokens, 8);
  machine.fail();
  EXPECT_EQ(machine.pools.full.cached(), 2);
  EXPECT_EQ(machine.scheduler.stats().running, 1);
}

TEST(SchedulerAheadTest, OutputsAreWantedOnce) {
  Machine machine{{.slots = 1, .batch_tokens = 16, .wanted_rows = 3}, 32, 4};
  const auto job = toy_job(std::vector<TokenId>(12, 1), 1);
  job->outputs_wanted = 7;
  machine.scheduler.enqueue(job);
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan()));
  for (const int64_t expected : {3, 3, 3}) {  // one of the last is wanted: the others are more than the rows
    EXPECT_EQ(counts(machine.scheduler.plan_ahead()), std::vector<int64_t>{expected});
    ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan_ahead()));
    ASSERT_NO_FATAL_FAILURE(machine.land());
  }
  ASSERT_NO_FATAL_FAILURE(machine.land());
  EXPECT_EQ(job->outputs, 7);
  EXPECT_TRUE(job->finished);
}

TEST(SchedulerAheadTest, EmbeddingsTakeTurnsWithOthers) {
  Machine machine{{.slots = 2, .batch_tokens = 8}, 32, 4};
  const auto embeds = toy_job(std::vector<TokenId>(20, 1), 0),
             answers = toy_job(std::vector<TokenId>(4, 2), 9);
  embeds->embedding = true;
  embeds->outputs_wanted = 20;
  machine.scheduler.enqueue(embeds);
  machine.scheduler.enqueue(answers);
  ASSERT_NO_FATAL_FAILURE(machine.give(machine.scheduler.plan()));
  for (const ToyJob* const job : {answers.get(), embeds.get(), answers.get(), embeds.get()}) {
    const std::vector<StepEntry>& plan = machine.scheduler.plan_ahead();
    ASSERT_EQ(plan.size(), 1u);
    EXPECT_EQ(plan[0].job, job);
    ASSERT_NO_FATAL_FAILURE(machine.give(plan));
    EXPECT_FALSE(embeds->finished);
    ASSERT_NO_FATAL_FAILURE(machine.land());
  }
  ASSERT_NO_FATAL_FAILURE(machine.land());
  EXPECT_TRUE(embeds->finished);
  EXPECT_EQ(embeds->outputs, 20);
}

class SchedulerAheadPropertyTest : public ::testing::TestWithParam<uint64_t> {};

// With steps that find no memory, that are taken back and that fail, cancelled requests, and few pages.
TEST_P(SchedulerAheadPropertyTest, EveryRequestSaysWhatItSaysAloneAndNoPageIsLost) {
  const uint64_t seed = GetParam();
  std::mt19937_64 random(seed);
  const auto from_to = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  int64_t preemptions = 0, forced = 0, hits = 0, sliding_hits = 0, ahead = 0, steps = 0, with_prompts = 0;
  for (int round = 0; round < 60; ++round) {
    constexpr int64_t kLongest = 40;  // tokens of a request, its answer included
    const int64_t page_tokens = from_to(1, 9);
    const int64_t least = (kLongest + page_tokens - 1) / page_tokens;
    Machine machine{{.slots = from_to(1, random() % 2 == 0 ? 2 : 9),
                     .batch_tokens = from_to(1, 40),
                     .wanted_rows = from_to(1, 8),
                     .prefix_cache = random() % 4 != 0},
                    from_to(least, random() % 2 == 0 ? least + least / 3 : least * 4),
                    page_tokens,
                    random() % 3 == 0 ? 0 : from_to(1, 14),
                    random() % 2 == 0 ? 0 : from_to(1, 40)};
    const uint64_t faults = random() % 2 == 0 ? 12 : 0;  // about one step in so many
    const auto fault = [&] { return faults > 0 && random() % faults == 0; };
    std::vector<std::shared_ptr<ToyJob>> jobs;
    std::vector<std::vector<TokenId>> expected;
    int64_t to_come = 30;
    for (int turn = 0; to_come > 0 || !machine.scheduler.idle(); ++turn) {
      ASSERT_LT(turn, 20'000) << "no progress, seed " << seed << ", round " << round;
      while (to_come > 0 && (machine.scheduler.idle() || random() % 4 == 0)) {
        --to_come;
        const auto job = random_job(random, expected);
        jobs.push_back(job);
        machine.scheduler.enqueue(job);
      }
      if (random() % 16 == 0) {
        ToyJob& job = *jobs[random() % jobs.size()];
        job.cancelled |= !job.finished;
        machine.scheduler.remove_if([](const Job& j) { return static_cast<const ToyJob&>(j).cancelled; });
        if (machine.scheduler.idle()) continue;
      }
      const std::string where = fmt::format("seed {}, round {}, turn {}", seed, round, turn);
      const bool behind = !machine.under_way.empty();
      const std::vector<StepEntry>& plan = behind ? machine.scheduler.plan_ahead() : machine.scheduler.plan();
      ASSERT_TRUE(behind || !plan.empty()) << where;
      ASSERT_NO_FATAL_FAILURE(machine.check(plan)) << where;
      const bool given = !plan.empty() && (!behind || !fault());
      if (given) {
        ++steps;
        ahead += behind ? 1 : 0;
        for (const StepEntry& entry : plan) with_prompts += behind && !entry.job->decodes() ? 1 : 0;
        ASSERT_NO_FATAL_FAILURE(machine.give(plan)) << where;
      }
      if (fault() && random() % 4 == 0) {
        machine.fail();
        continue;
      }
      if (!behind) continue;
      if (given && fault()) machine.take_back();
      ASSERT_NO_FATAL_FAILURE(machine.land()) << where;
    }
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (jobs[i]->cancelled) continue;
      EXPECT_TRUE(jobs[i]->finished);
      EXPECT_EQ(jobs[i]->tokens, expected[i]) << "seed " << seed << ", round " << round;
      EXPECT_EQ(jobs[i]->outputs, jobs[i]->outputs_wanted);
      EXPECT_LT(jobs[i]->cached_tokens, jobs[i]->prompt_tokens);
    }
    EXPECT_EQ(machine.pools.full.used() + machine.pools.sliding.used(), 0);
    hits += machine.scheduler.stats().prefix_hits;
    sliding_hits += machine.window > 0 ? machine.scheduler.stats().prefix_hits : 0;
    machine.tree.clear();
    EXPECT_EQ(machine.pools.full.free(), machine.pools.full.total());
    EXPECT_EQ(machine.pools.sliding.free(), machine.pools.sliding.total());
    preemptions += machine.scheduler.stats().preemptions;
    forced += machine.forced;
  }
  EXPECT_GT(forced, 0);
  EXPECT_GT(hits, sliding_hits);
  EXPECT_GT(sliding_hits, 0);
  EXPECT_GT(preemptions, 0);  // or the pools were not small enough to test anything
  EXPECT_GT(with_prompts, 0);
  EXPECT_GT(ahead, steps / 2);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerAheadPropertyTest, ::testing::Values(1, 2, 3, 4, 5, 6));

}  // namespace
}  // namespace qiao::testing
