// Each step planned when the last one has ended.
#include <gtest/gtest.h>

#include <random>

#include "infer/toy_machine.h"

namespace qiao::testing {
namespace {

TEST(SchedulerTest, DecodesFirstAndGivesTheRestOfTheBudgetToPromptsInOrder) {
  Machine machine{{.slots = 8, .batch_tokens = 10}, 64, 4};
  const auto first = toy_job(std::vector<TokenId>(6, 7), 9);
  machine.scheduler.enqueue(first);
  machine.step();
  ASSERT_TRUE(first->decodes());
  const auto second = toy_job(std::vector<TokenId>(7, 8), 1), third = toy_job(std::vector<TokenId>(7, 9), 1);
  machine.scheduler.enqueue(second);
  machine.scheduler.enqueue(third);
  const std::vector<StepEntry>& plan = machine.scheduler.plan();
  ASSERT_EQ(plan.size(), 3u);
  EXPECT_EQ(plan[0].job, first.get());
  EXPECT_EQ(plan[0].count, 1);
  EXPECT_EQ(plan[1].job, second.get());
  EXPECT_EQ(plan[1].count, 7);
  EXPECT_EQ(plan[2].job, third.get());
  EXPECT_EQ(plan[2].count, 2);
}

TEST(SchedulerTest, ForcedTokensAreOneChunkBeforeTheNextPrompt) {
  Machine machine{{.slots = 8, .batch_tokens = 10}, 64, 4};
  const auto first = toy_job(std::vector<TokenId>(6, 7), 30);
  machine.scheduler.enqueue(first);
  machine.step();
  const auto second = toy_job(std::vector<TokenId>(9, 8), 1);
  machine.scheduler.enqueue(second);
  first->tokens.insert(first->tokens.end(), 5, 1);
  EXPECT_FALSE(first->decodes());
  const std::vector<StepEntry>& plan = machine.scheduler.plan();
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].job, first.get());
  EXPECT_EQ(plan[0].count, 6);  // the token drawn last, and five that follow it
  EXPECT_EQ(first->pages.full.size(), 3u);
  EXPECT_EQ(plan[1].job, second.get());
  EXPECT_EQ(plan[1].count, 4);
}

TEST(SchedulerTest, TheYoungestGivesItsPagesBackAndComesFirstAgain) {
  Machine machine{{.slots = 8, .batch_tokens = 100, .prefix_cache = false}, 8, 4};
  const auto oldest = toy_job(std::vector<TokenId>(12, 1), 20),
             youngest = toy_job(std::vector<TokenId>(12, 2), 2);
  const auto waiting = toy_job(std::vector<TokenId>(4, 3), 1);
  machine.scheduler.enqueue(oldest);
  machine.step();
  youngest->wanted = 12;
  machine.scheduler.enqueue(youngest);
  machine.step();
  machine.scheduler.enqueue(waiting);  // 3 + 4 pages are in use, and each of two wants a spare one
  while (youngest->preemptions == 0) ASSERT_NO_FATAL_FAILURE(machine.step());
  EXPECT_EQ(oldest->preemptions, 0);
  EXPECT_TRUE(youngest->pages.full.empty());
  EXPECT_EQ(machine.scheduler.stats().preemptions, 1);
  while (!machine.scheduler.idle()) {
    EXPECT_FALSE(waiting->finished && !youngest->finished && youngest->pages.full.empty()) << "was passed by";
    ASSERT_NO_FATAL_FAILURE(machine.step());
  }
  EXPECT_EQ(youngest->tokens, generated_alone(std::vector<TokenId>(12, 2), 12));
  EXPECT_EQ(oldest->tokens, generated_alone(std::vector<TokenId>(12, 1), 20));
}

TEST(SchedulerTest, ARequestStartsFromPagesThatAnotherIsStillFilling) {
  Machine machine{{.slots = 2, .batch_tokens = 8}, 32, 4};
  std::vector<TokenId> prompt(20);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<TokenId>(i % 7);
  const auto first = toy_job(prompt, 4), second = toy_job(prompt, 4);
  machine.scheduler.enqueue(first);
  machine.scheduler.enqueue(second);
  while (!machine.scheduler.idle()) ASSERT_NO_FATAL_FAILURE(machine.step());
  EXPECT_EQ(first->cached_tokens, 0);
  EXPECT_EQ(second->cached_tokens, 16);  // the last token is always computed, so the fifth page is too
  EXPECT_EQ(second->tokens, first->tokens);
  const SchedulerStats stats = machine.scheduler.stats();
  EXPECT_EQ(stats.prefix_queries, 40);
  EXPECT_EQ(stats.prefix_hits, 16);
}

TEST(SchedulerTest, AFailedStepLeavesNothingInTheCache) {
  Machine machine{{.slots = 2, .batch_tokens = 100}, 16, 4};
  machine.scheduler.enqueue(toy_job(std::vector<TokenId>(20, 1), 4));
  const std::vector<StepEntry> step = machine.scheduler.plan();
  EXPECT_EQ(step.size(), 1u);
  machine.scheduler.abandon(step);
  EXPECT_TRUE(machine.scheduler.idle());
  EXPECT_EQ(machine.pools.full.free(), 16);
}

std::vector<TokenId> counted(int64_t count, TokenId first) {
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<TokenId>(first + static_cast<TokenId>(i));
  return tokens;
}

int64_t cached_tokens_of(Machine& machine, const std::vector<TokenId>& prompt, int64_t wanted) {
  const auto job = toy_job(prompt, wanted);
  machine.scheduler.enqueue(job);
  while (!machine.scheduler.idle()) {
    machine.step();
    if (::testing::Test::HasFatalFailure()) return -1;
  }
  EXPECT_EQ(job->tokens, generated_alone(prompt, wanted));
  return job->cached_tokens;
}

TEST(SchedulerTest, ASequenceOfManyWindowsHoldsOnlyItsWindow) {
  constexpr int64_t kWindow = 16, kChunk = 8, kPageTokens = 4;
  Machine machine{{.slots = 1, .batch_tokens = kChunk}, 100, kPageTokens, kWindow};
  EXPECT_LT(machine.pools.sliding.total(), 10);
  const auto job = toy_job(counted(300, 5), 60);
  machine.scheduler.enqueue(job);
  int64_t most = 0;
  while (!machine.scheduler.idle()) {
    machine.scheduler.plan();
    most = std::max(most, machine.pools.sliding.used() * kPageTokens);
    ASSERT_NO_FATAL_FAILURE(machine.step());  // plans the same again
  }
  EXPECT_EQ(job->tokens, generated_alone(counted(300, 5), 60));
  EXPECT_LE(most, kWindow + kChunk + kPageTokens);
  EXPECT_EQ(machine.pools.sliding.used(), 0);
}

// What is kept of a window: the end of a prompt and of an answer before all between.
TEST(SchedulerTest, ALongPromptIsContinuedAtItsEndWhateverElseIsAsked) {
  Machine machine{{.slots = 1, .batch_tokens = 8}, 300, 4, 16, 20};
  const std::vector<TokenId> prompt = counted(200, 1000);
  EXPECT_EQ(cached_tokens_of(machine, prompt, 40), 0);
  EXPECT_EQ(cached_tokens_of(machine, counted(300, 5000), 3), 0);  // many times what there is room for
  EXPECT_EQ(cached_tokens_of(machine, prompt, 40), 196);           // the last token is always computed
  // A conversation goes on behind the answer.
  std::vector<TokenId> longer = generated_alone(prompt, 40);
  longer.resize(longer.size() + 10, 7);
  EXPECT_EQ(cached_tokens_of(machine, longer, 3), 236);  // of the answer's last token nothing was computed
}

// Prompts that begin alike and then part: the third is told by where the second left the first one's path.
TEST(SchedulerTest, WhereRequestsPartTheWindowIsKept) {
  Machine machine{{.slots = 1, .batch_tokens = 8}, 300, 4, 16, 12};
  const auto prompt = [](TokenId number) {
    std::vector<TokenId> tokens = counted(100, 1000);
    const std::vector<TokenId> own = counted(150, static_cast<TokenId>(2000 + 200 * number));
    tokens.insert(tokens.end(), own.begin(), own.end());
    return tokens;
  };
  EXPECT_EQ(cached_tokens_of(machine, prompt(0), 3), 0);
  cached_tokens_of(machine, prompt(1), 3);
  for (TokenId number = 2; number < 6; ++number) EXPECT_EQ(cached_tokens_of(machine, prompt(number), 3), 100);
}

class SchedulerPropertyTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(SchedulerPropertyTest, EveryRequestSaysWhatItSaysAloneAndNoPageIsLost) {
  const uint64_t seed = GetParam();
  std::mt19937_64 random(seed);
  const auto from_to = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  int64_t preemptions = 0, accepted = 0, forced = 0, sliding_hits = 0;
  for (int round = 0; round < 40; ++round) {
    constexpr int64_t kLongest = 40;  // tokens of a request, its answer included
    const int64_t page_tokens = from_to(1, 9);
    const int64_t least = (kLongest + page_tokens - 1) / page_tokens;
    Machine machine{{.slots = from_to(1, 9),
                     .batch_tokens = from_to(1, 40),
                     .wanted_rows = from_to(1, 8),
                     .prefix_cache = random() % 4 != 0,
                     .draft_tokens = round % 2 == 0 ? from_to(1, 6) : 0},
                    from_to(least, least * 3),
                    page_tokens,
                    random() % 3 == 0 ? 0 : from_to(1, 14),
                    from_to(0, 2)};
    std::vector<std::shared_ptr<ToyJob>> jobs;
    std::vector<std::vector<TokenId>> expected;
    int64_t to_come = 30;
    for (int step = 0; to_come > 0 || !machine.scheduler.idle(); ++step) {
      ASSERT_LT(step, 20'000) << "no progress, seed " << seed << ", round " << round;
      while (to_come > 0 && (machine.scheduler.idle() || random() % 4 == 0)) {
        --to_come;
        const auto job = random_job(random, expected);
        job->guesses = &random;
        jobs.push_back(job);
        machine.scheduler.enqueue(job);
      }
      if (random() % 16 == 0) {
        ToyJob& job = *jobs[random() % jobs.size()];
        job.cancelled = !job.finished;
        machine.scheduler.remove_if([](const Job& j) { return static_cast<const ToyJob&>(j).cancelled; });
        if (machine.scheduler.idle()) continue;
      }
      ASSERT_NO_FATAL_FAILURE(machine.step()) << "seed " << seed << ", round " << round;
    }
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (jobs[i]->cancelled) continue;
      EXPECT_TRUE(jobs[i]->finished);
      EXPECT_EQ(jobs[i]->tokens, expected[i]) << "seed " << seed << ", round " << round;
      EXPECT_EQ(jobs[i]->outputs, jobs[i]->outputs_wanted);
      EXPECT_LT(jobs[i]->cached_tokens, jobs[i]->prompt_tokens);
      if (jobs[i]->outputs_wanted > 0) {
        EXPECT_EQ(jobs[i]->cached_tokens, 0);
      }
    }
    EXPECT_EQ(machine.pools.full.used() + machine.pools.sliding.used(), 0);
    sliding_hits += machine.window > 0 ? machine.scheduler.stats().prefix_hits : 0;
    machine.tree.clear();
    EXPECT_EQ(machine.pools.full.free(), machine.pools.full.total());
    EXPECT_EQ(machine.pools.sliding.free(), machine.pools.sliding.total());
    preemptions += machine.scheduler.stats().preemptions;
    accepted += machine.accepted;
    forced += machine.forced;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(forced, 0);
  EXPECT_GT(sliding_hits, 0);
  EXPECT_GT(preemptions, 0);  // or the pools were not small enough to test anything
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerPropertyTest, ::testing::Values(1, 2, 3, 4));

}  // namespace
}  // namespace qiao::testing
