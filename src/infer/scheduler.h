// What runs in the next step: which requests are admitted to the cache, which are preempted, and how many
// tokens of each go through the model. Knows pages and tokens, but no model: it is tested without one.
// Continuous batching as in Orca (Yu et al. 2022), paged memory and preemption by recomputation as in vLLM
// (Kwon et al. 2023), chunked prefill as in Sarathi-Serve (Agrawal et al. 2024).
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "infer/page_pool.h"
#include "infer/prefix_tree.h"
#include "text/tokenizer.h"

namespace qiao {

// A request as the scheduler sees it.
struct Job {
  virtual ~Job() = default;

  // The prompt, then what was generated: grows between steps.
  std::vector<TokenId> tokens;
  int64_t prompt_tokens = 0;
  std::string tenant;      // shares cached pages with its own requests only
  bool embedding = false;  // wants hidden states: runs in steps without those that do not
  // The outputs of that many leading positions are wanted (log-probabilities of a prompt or of forced tokens,
  // embeddings), and so many of them are had, or were never wanted: a cached page does not give them.
  int64_t outputs_wanted = 0, outputs_had = 0;
  bool finished = false;  // set while its step runs; it leaves in settle()

  // So many of the `computed` tokens, the last ones, are in steps whose results are not there yet, and so
  // many tokens these draw: the host does not know them, but that they follow `tokens`, and the chip has
  // them.
  int64_t under_way = 0, awaited = 0;
  bool leaves = false;  // as soon as no step is under way
  // Whether with what is awaited it has all tokens that it may have.
  virtual bool ends_with_awaited() const { return false; }

  // Guesses of the tokens that follow, to be computed with them. They are in no page once the step is over.
  std::vector<TokenId> draft;
  // Guesses at most that many, into `draft`; the default is to guess none.
  virtual void propose(int64_t most) { (void)most; }
  // How many guesses, at most `most`, can be of use before the job ends.
  virtual int64_t draft_room(int64_t most) const { return most; }

  // The first `computed` tokens, awaited ones with them, have their keys and values in `pages`, or steps
  // under way put them there; in sliding layers, as far as a token to come sees them. Whoever runs the step
  // advances it.
  int64_t computed = 0;
  PageTables pages;
  int64_t shared_pages = 0;   // so many of them, from the first, are in the prefix tree
  int64_t branch_pages = 0;   // with so many pages its tokens left what was in the tree
  int64_t cached_tokens = 0;  // of the prompt, found there
  int64_t preemptions = 0;

  int64_t pending() const { return static_cast<int64_t>(tokens.size()) + awaited - computed; }
  int64_t landed() const { return computed - under_way; }
  // Outputs that no step gives yet.
  bool wants_outputs() const { return std::max(outputs_had, computed) < outputs_wanted; }
  // Whether there is anything to give to a step: it may end with the one under way, or end there for certain.
  bool goes_on() const {
    return !finished && !leaves && pending() > 0 && !(awaited > 0 && ends_with_awaited());
  }
  // One token a step from here on; else a prompt, tokens that a grammar forced behind it, or what is computed
  // again after a preemption.
  bool decodes() const { return pending() == 1 && computed >= prompt_tokens && !embedding; }
};

// Guesses the tokens that follow for several jobs together, by what these have so far.
struct DraftTask {
  Job* job;
  int64_t most;
};
struct Drafter {
  virtual ~Drafter() = default;
  // Adds at most `most` guesses to each job's draft, which is empty; there are pages for them.
  virtual void propose(std::span<const DraftTask> tasks) = 0;
};

struct StepEntry {
  Job* job;
  int64_t count;  // of its pending tokens, 1 or more; the draft's with them
};

struct SchedulerOptions {
  int64_t slots = 1;         // most sequences in a step
  int64_t batch_tokens = 1;  // budget of a step; a step of as many decoding sequences may exceed it
  int64_t wanted_rows = 32;  // most outputs of prompt positions in a step (embeddings do not count)
  bool prefix_cache = true;
  int64_t draft_tokens = 0;  // of one job in one step
};

struct SchedulerStats {
  int64_t running = 0, waiting = 0, preemptions = 0;
  int64_t prefix_queries = 0, prefix_hits = 0;  // prompt tokens looked for, and found
};

// One thread's.
class Scheduler {
 public:
  // Drafts go only into steps of fewer tokens: beyond, a chip computes no token for free.
  static constexpr int64_t kDraftStepTokens = 32;

  // Required of every job: the full pages hold as many tokens as it can ever have. Of sliding pages there are
  // PagePools::window_pages of the slots and the largest step (of two, for plan_ahead to find them always),
  // or as many as full ones: so a job that has full pages finds sliding ones too, and only the full ones are
  // waited for or taken from others.
  Scheduler(PagePools& pools, PrefixTree& tree, const SchedulerOptions& options);

  void enqueue(std::shared_ptr<Job> job);

  // The next step: one token of each decoding job, then prompts, first come, first served, as the budget
  // goes, then drafts. Takes pages for it; where they run out, the youngest jobs give theirs back and wait at
  // the head of the queue. Empty only where nothing is queued and nothing runs. Valid until the next call of
  // any member.
  const std::vector<StepEntry>& plan();

  // While a step is under way: the one after it, by the same rules, but for what must wait for the results:
  // nobody is preempted, nothing guessed, and of a prompt of which a chunk is under way no page is replaced
  // by one that another job has filled since. Empty where nothing can be given before the step has ended, or
  // where pages lack for what goes on. Valid as plan()'s.
  const std::vector<StepEntry>& plan_ahead();

  // Adds to the planned step guesses of `drafter` for the decoding jobs that have none, at most `most` each.
  void draft(Drafter& drafter, int64_t most);

  // A step has run: pages that it filled are shared, and finished jobs give theirs back. Of what another step
  // still computes no page is shared, and no job leaves before that has ended.
  void settle(std::span<const StepEntry> step);
  // A step failed: its jobs leave; what it wrote is in no shared page.
  void abandon(std::span<const StepEntry> step);

  // Removes the jobs, queued or running, for which `gone` is true, and returns them; of those of which a step
  // is under way each once, and they leave with its end.
  template <typename Predicate>
  std::vector<std::shared_ptr<Job>> remove_if(Predicate gone);

  bool idle() const { return running_.empty() && waiting_.empty(); }
  SchedulerStats stats() const;

 private:
  bool extend(Job& job, int64_t tokens);
  int64_t sliding_pages_wanted() const;
  void take_sliding_pages();
  void leave_window(Job& job);
  bool is_worth_keeping(const Job& job, int64_t page) const;
  bool admit(Job& job);
  void look_up(Job& job);
  void release(Job& job);
  void preempt_youngest();
  void make_room_for_generated();
  void admit_waiting();
  void plan_tokens();
  void plan_prompts(int64_t budget);
  void plan_drafts();
  int64_t draft_budget() const;
  int64_t room_for_draft(Job& job, int64_t wish);

  PagePools& pools_;
  PrefixTree& tree_;
  const SchedulerOptions options_;
  std::deque<std::shared_ptr<Job>> waiting_;
  std::vector<std::shared_ptr<Job>> running_;  // in order of arrival
  std::vector<StepEntry> plan_;
  std::vector<DraftTask> draft_tasks_;
  bool embedding_turn_ = false, preempted_now_ = false;
  SchedulerStats totals_;
};

template <typename Predicate>
std::vector<std::shared_ptr<Job>> Scheduler::remove_if(Predicate gone) {
  std::vector<std::shared_ptr<Job>> removed;
  const auto take = [&](auto& list, bool has_pages) {
    std::erase_if(list, [&](const std::shared_ptr<Job>& job) {
      if (!gone(std::as_const(*job))) return false;
      if (job->under_way > 0) {
        if (!std::exchange(job->leaves, true)) removed.push_back(job);
        return false;
      }
      if (has_pages) release(*job);
      removed.push_back(job);
      return true;
    });
  };
  take(running_, true);
  take(waiting_, false);
  return removed;
}

}  // namespace qiao
