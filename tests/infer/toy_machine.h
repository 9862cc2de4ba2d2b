// The scheduler with a model of three lines: what a cached position holds is a hash of all tokens up to it,
// and so is the token that is drawn. Whatever the schedule, every request must say what it says alone.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "infer/scheduler.h"

namespace qiao::testing {

inline uint64_t extend_hash(uint64_t hash, TokenId token) {
  return (hash ^ static_cast<uint64_t>(token)) * 0x9e3779b97f4a7c15u + (hash >> 29);
}

inline TokenId draw(uint64_t hash) { return static_cast<TokenId>((hash >> 33) % 3); }

inline std::vector<TokenId> generated_alone(const std::vector<TokenId>& prompt, int64_t wanted) {
  std::vector<TokenId> tokens = prompt;
  uint64_t hash = 0;
  for (const TokenId token : prompt) hash = extend_hash(hash, token);
  for (int64_t i = 0; i < wanted; ++i) {
    tokens.push_back(draw(hash));
    hash = extend_hash(hash, tokens.back());
  }
  return tokens;
}

struct ToyJob final : Job {
  int64_t wanted = 0;  // tokens to generate
  bool cancelled = false;
  bool forces = false;           // a drawn 0 brings the next three tokens with it
  int64_t outputs = 0;           // given by steps
  std::vector<TokenId> on_chip;  // those awaited
  bool ends_with_awaited() const override {
    return static_cast<int64_t>(tokens.size()) + awaited >= prompt_tokens + wanted;
  }
  std::mt19937_64* guesses = nullptr;

  void propose(int64_t most) override {
    if (guesses == nullptr) return;
    most = std::min(most, prompt_tokens + wanted - static_cast<int64_t>(tokens.size()) - 1);
    const std::vector<TokenId> right =
        generated_alone({tokens.begin(), tokens.begin() + prompt_tokens}, wanted);
    for (int64_t i = 0; i < most; ++i)
      draft.push_back((*guesses)() % 3 == 0 ? 1 : right[tokens.size() + static_cast<size_t>(i)]);
  }
};

struct Machine {
  SchedulerOptions options;
  int64_t pages, page_tokens;
  int64_t window = 0;         // of sliding layers; 0: there are none
  int64_t spare_sliding = 0;  // their pages beyond what the slots can use
  PagePools pools{pages, page_tokens, sliding_pages(), window};
  PrefixTree tree{pools};
  Scheduler scheduler{pools, tree, options};
  int64_t accepted = 0;  // tokens of drafts
  int64_t forced = 0;
  std::vector<uint64_t> memory = std::vector<uint64_t>(static_cast<size_t>(pages * page_tokens));
  std::vector<uint64_t> sliding =
      std::vector<uint64_t>(static_cast<size_t>(pools.sliding.total() * page_tokens));

  int64_t sliding_pages() const {
    if (window == 0) return 0;
    const int64_t step_tokens = std::max(options.slots, options.batch_tokens);
    return std::min(pages,
                    PagePools::window_pages(window, page_tokens, options.slots, step_tokens) + spare_sliding);
  }

  uint64_t& at(const std::vector<int32_t>& table, std::vector<uint64_t>& slots, int64_t position) const {
    const int32_t page = table.at(static_cast<size_t>(position / page_tokens));
    return slots.at(static_cast<size_t>(page * page_tokens + position % page_tokens));  // kNoPage throws
  }
  void write(const PagePool& pool, const std::vector<int32_t>& table, std::vector<uint64_t>& slots,
             int64_t position, uint64_t hash) const {
    ASSERT_EQ(pool.refs(table.at(static_cast<size_t>(position / page_tokens))), 1)
        << "a shared page is written";
    at(table, slots, position) = hash;
  }

  // The job's next `count` of `tokens`, all that it has; the hashes of the first ones up to there.
  void fill(ToyJob& job, int64_t count, const std::vector<TokenId>& tokens, std::vector<uint64_t>& hashes) {
    const int64_t end = job.computed + count;
    for (int64_t i = 0; i < end; ++i) {
      hashes.push_back(extend_hash(i == 0 ? 0 : hashes.back(), tokens[static_cast<size_t>(i)]));
      if (i < job.computed) {
        ASSERT_EQ(at(job.pages.full, memory, i), hashes.back())
            << "position " << i << " holds something else";
        if (window == 0 || i <= job.computed - window) continue;
        ASSERT_EQ(at(job.pages.sliding, sliding, i), hashes.back()) << "position " << i << ", sliding layers";
      } else {
        ASSERT_NO_FATAL_FAILURE(write(pools.full, job.pages.full, memory, i, hashes.back()));
        if (window > 0) {
          ASSERT_NO_FATAL_FAILURE(write(pools.sliding, job.pages.sliding, sliding, i, hashes.back()));
        }
      }
    }
  }

  void compute(ToyJob& job, int64_t count) {
    const auto known = static_cast<int64_t>(job.tokens.size()), end = job.computed + count;
    std::vector<TokenId> tokens = job.tokens;
    tokens.insert(tokens.end(), job.draft.begin(), job.draft.end());
    std::vector<uint64_t> hashes;
    ASSERT_NO_FATAL_FAILURE(fill(job, count, tokens, hashes));
    for (int64_t i = job.computed; i < end; ++i)
      if (i == job.outputs_had && i < job.outputs_wanted) ++job.outputs_had, ++job.outputs;
    job.computed = std::min(end, known);
    if (end < known) return;
    const int64_t last = job.prompt_tokens + job.wanted;
    for (size_t i = 0; i <= job.draft.size() && static_cast<int64_t>(job.tokens.size()) < last; ++i) {
      uint64_t hash = hashes[static_cast<size_t>(known) - 1 + i];
      job.tokens.push_back(draw(hash));
      if (job.forces && job.tokens.back() == 0) {
        for (int more = 0; more < 3 && static_cast<int64_t>(job.tokens.size()) < last; ++more) {
          hash = extend_hash(hash, job.tokens.back());
          job.tokens.push_back(draw(hash));
          ++forced;
        }
        break;
      }
      if (i == job.draft.size() || job.draft[i] != job.tokens.back()) break;
      ++job.computed;
      ++accepted;
    }
    job.draft.clear();
    job.finished = static_cast<int64_t>(job.tokens.size()) == last;
  }

  // What holds of every plan.
  void check(const std::vector<StepEntry>& plan) const {
    std::set<Job*> jobs;
    int64_t prompt_tokens = 0, decoding = 0, rows = 0, drafted = 0, all = 0;
    bool embeds = false, others = false;
    for (const StepEntry& entry : plan) {
      ASSERT_TRUE(jobs.insert(entry.job).second);
      ASSERT_TRUE(entry.count >= 1 &&
                  entry.count <= entry.job->pending() + static_cast<int64_t>(entry.job->draft.size()));
      all += entry.count;
      drafted += static_cast<int64_t>(entry.job->draft.size());
      ASSERT_LE(entry.job->computed + entry.count,
                static_cast<int64_t>(entry.job->pages.full.size()) * page_tokens);
      entry.job->decodes() ? ++decoding : prompt_tokens += entry.count;
      (entry.job->embedding ? embeds : others) = true;
      if (!entry.job->embedding && entry.job->outputs_had < entry.job->outputs_wanted) {
        const int64_t end = entry.job->computed + entry.count;
        rows += std::max<int64_t>(0, std::min(end, entry.job->outputs_wanted) -
                                         std::max(entry.job->computed, entry.job->outputs_had));
      }
    }
    ASSERT_FALSE(embeds && others);
    ASSERT_LE(static_cast<int64_t>(plan.size()), options.slots);
    ASSERT_LE(prompt_tokens, std::max<int64_t>(1, options.batch_tokens - decoding));
    ASSERT_LE(rows, options.wanted_rows);
    if (drafted > 0) {
      ASSERT_LE(all, std::min(options.batch_tokens, Scheduler::kDraftStepTokens));
    }
  }

  void step() {
    const std::vector<StepEntry>& plan = scheduler.plan();
    ASSERT_FALSE(plan.empty());
    ASSERT_NO_FATAL_FAILURE(check(plan));
    for (const StepEntry& entry : plan)
      ASSERT_NO_FATAL_FAILURE(compute(static_cast<ToyJob&>(*entry.job), entry.count));
    scheduler.settle(plan);
  }

  // As a chip that runs behind does it: what is given is computed at once and known to the host when it
  // lands.
  struct Flight {
    std::vector<StepEntry> entries;
    struct Draw {
      ToyJob* job;
      int64_t index;  // of the token
    };
    std::vector<Draw> draws;
    std::vector<std::pair<ToyJob*, int64_t>> outputs;  // positions
  };
  std::deque<Flight> under_way;

  void give(const std::vector<StepEntry>& plan) {
    Flight& flight = under_way.emplace_back();
    flight.entries = plan;
    for (const StepEntry& entry : plan) {
      auto& job = static_cast<ToyJob&>(*entry.job);
      std::vector<TokenId> tokens = job.tokens;
      tokens.insert(tokens.end(), job.on_chip.begin(), job.on_chip.end());
      std::vector<uint64_t> hashes;
      ASSERT_NO_FATAL_FAILURE(fill(job, entry.count, tokens, hashes));
      const int64_t end = job.computed + entry.count;
      for (int64_t i = std::max(job.computed, job.outputs_had); i < std::min(end, job.outputs_wanted); ++i)
        flight.outputs.emplace_back(&job, i);
      job.computed = end;
      job.under_way += entry.count;
      if (end < std::ssize(tokens) || end >= job.prompt_tokens + job.wanted) continue;
      flight.draws.push_back({&job, end});
      job.on_chip.push_back(draw(hashes.back()));
      ++job.awaited;
    }
  }

  // The first one's results; settles it.
  void land() {
    const Flight flight = std::move(under_way.front());
    under_way.pop_front();
    for (const StepEntry& entry : flight.entries) entry.job->under_way -= entry.count;
    for (const auto& [job, position] : flight.outputs) {
      ASSERT_EQ(job->outputs_had, position) << "an output is missing, or came twice";
      ++job->outputs_had, ++job->outputs;
    }
    for (const auto& [job, index] : flight.draws) take(*job, index);
    for (const StepEntry& entry : flight.entries) {
      auto& job = static_cast<ToyJob&>(*entry.job);
      job.finished |= std::ssize(job.tokens) == job.prompt_tokens + job.wanted &&
                      (job.wanted > 0 || (job.pending() == 0 && job.under_way == 0));
    }
    scheduler.settle(flight.entries);
  }

  void take(ToyJob& job, int64_t index) {
    ASSERT_EQ(std::ssize(job.tokens), index);
    job.tokens.push_back(job.on_chip.front());
    job.on_chip.erase(job.on_chip.begin());
    --job.awaited;
    if (!job.forces || job.tokens.back() != 0) return;
    const int64_t last = job.prompt_tokens + job.wanted;
    const std::vector<TokenId> all =
        generated_alone({job.tokens.begin(), job.tokens.begin() + job.prompt_tokens}, job.wanted);
    for (int more = 0; more < 3 && std::ssize(job.tokens) < last; ++more, ++forced)
      job.tokens.push_back(all[job.tokens.size()]);
    // What the step behind draws is known.
    for (Flight& flight : under_way) {
      const auto drops = [&](const Flight::Draw& other) {
        return other.job == &job && other.index < std::ssize(job.tokens);
      };
      if (std::erase_if(flight.draws, drops) == 0) continue;
      job.on_chip.clear();
      --job.awaited;
    }
  }

  // The chip has not done the last step given, for lack of memory: what lies in its places is anything.
  void take_back() {
    const Flight flight = std::move(under_way.back());
    under_way.pop_back();
    for (const auto& [job, index] : flight.draws) {
      job->on_chip.pop_back();
      --job->awaited;
    }
    for (const StepEntry& entry : flight.entries) {
      entry.job->computed -= entry.count;
      entry.job->under_way -= entry.count;
      spoil(*entry.job, entry.job->computed, entry.job->computed + entry.count);
    }
  }

  // All steps under way fail: their jobs leave.
  void fail() {
    std::vector<StepEntry> entries;
    for (const Flight& flight : under_way)
      entries.insert(entries.end(), flight.entries.begin(), flight.entries.end());
    under_way.clear();
    for (const StepEntry& entry : entries) {
      spoil(*entry.job, entry.job->landed(), entry.job->computed);
      static_cast<ToyJob&>(*entry.job).cancelled = true;
    }
    scheduler.abandon(entries);
  }

  void spoil(const Job& job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      at(job.pages.full, memory, i) = ~uint64_t{0};
      if (window > 0) at(job.pages.sliding, sliding, i) = ~uint64_t{0};
    }
  }
};

inline std::shared_ptr<ToyJob> toy_job(std::vector<TokenId> prompt, int64_t wanted) {
  const auto job = std::make_shared<ToyJob>();
  job->tokens = std::move(prompt);
  job->prompt_tokens = static_cast<int64_t>(job->tokens.size());
  job->wanted = wanted;
  return job;
}

// A request of two tokens' alphabet, so that beginnings meet: an answer, log-probabilities of its prompt or
// an embedding, of one of two tenants. Appends what it says alone.
inline std::shared_ptr<ToyJob> random_job(std::mt19937_64& random,
                                          std::vector<std::vector<TokenId>>& expected) {
  std::vector<TokenId> prompt(1 + random() % 30);
  for (TokenId& token : prompt) token = static_cast<TokenId>(random() % 8 == 0);
  const auto job = toy_job(prompt, static_cast<int64_t>(random() % 11));
  job->forces = random() % 2 == 0;
  job->tenant = random() % 4 == 0 ? "other" : "";
  job->embedding = random() % 8 == 0;
  if (job->embedding) job->wanted = 0;
  if (job->embedding || random() % 8 == 0)
    job->outputs_wanted = job->prompt_tokens - (job->embedding ? 0 : 1);
  expected.push_back(generated_alone(prompt, job->wanted));
  return job;
}

}  // namespace qiao::testing
