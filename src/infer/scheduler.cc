#include "infer/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace qiao {
namespace {

// Puts `found` into the table from entry `at` on, in place of the job's own pages there.
void replace(PagePool& pool, std::vector<int32_t>& table, int64_t at, std::span<const int32_t> found) {
  auto place = static_cast<size_t>(at);
  for (const int32_t page : found) {
    if (place == table.size()) table.push_back(kNoPage);
    const int32_t own = std::exchange(table[place++], page);
    if (own != kNoPage) pool.unref(own);
  }
}

}  // namespace

Scheduler::Scheduler(PagePools& pools, PrefixTree& tree, const SchedulerOptions& options)
    : pools_(pools), tree_(tree), options_(options) {
  const int64_t step_tokens = std::max(options.slots, options.batch_tokens);
  QIAO_ASSERT(!pools.slides() ||
              pools.sliding.total() >=
                  std::min(pools.full.total(), PagePools::window_pages(pools.window, pools.page_tokens,
                                                                       options.slots, step_tokens)));
}

void Scheduler::enqueue(std::shared_ptr<Job> job) {
  QIAO_ASSERT(pools_.pages_for(static_cast<int64_t>(job->tokens.size())) <= pools_.full.total());
  waiting_.push_back(std::move(job));
}

// Full pages for the job's first `tokens` tokens; false, and nothing changed, where there are not enough.
bool Scheduler::extend(Job& job, int64_t tokens) {
  const auto pages = static_cast<size_t>(pools_.pages_for(tokens));
  if (pages <= job.pages.full.size()) return true;
  if (static_cast<int64_t>(pages - job.pages.full.size()) > pools_.full.available()) return false;
  while (job.pages.full.size() < pages) {
    if (pools_.full.free() == 0) tree_.evict();
    job.pages.full.push_back(pools_.full.allocate());
  }
  return true;
}

int64_t Scheduler::sliding_pages_wanted() const {
  if (!pools_.slides()) return 0;
  int64_t count = 0;
  for (const auto& [job, tokens] : plan_)
    count += std::max<int64_t>(0, pools_.pages_for(job->computed + tokens) - std::ssize(job->pages.sliding));
  return count;
}

// Sliding pages for what the planned step computes: never more than its window and these does a job hold.
void Scheduler::take_sliding_pages() {
  if (!pools_.slides()) return;
  for (const StepEntry& entry : plan_) {
    std::vector<int32_t>& table = entry.job->pages.sliding;
    const int64_t pages = pools_.pages_for(entry.job->computed + entry.count);
    while (std::ssize(table) < pages) {
      if (pools_.sliding.free() == 0) tree_.evict_sliding();
      table.push_back(pools_.sliding.allocate());
    }
  }
}

// Who comes later with the same beginning goes on from the end of the prompt, or from where other requests
// left it before; at other places of a long prompt hardly anybody does.
bool Scheduler::is_worth_keeping(const Job& job, int64_t page) const {
  // A page more: of the same prompt the last token is computed again, which may be the page's last.
  const auto in_window_of = [&](int64_t end) { return page < end && page >= pools_.window_start(end - 1); };
  return in_window_of(job.prompt_tokens / pools_.page_tokens) || in_window_of(job.branch_pages);
}

// Gives back the sliding pages that no token behind the last full page sees, and those that nothing was
// computed in: a draft was wrong, or a step was planned and not given. A step under way reads from its own
// beginning on.
void Scheduler::leave_window(Job& job) {
  if (!pools_.slides()) return;
  std::vector<int32_t>& table = job.pages.sliding;
  const auto computed = static_cast<size_t>(pools_.pages_for(job.computed));
  for (; table.size() > computed; table.pop_back()) pools_.sliding.unref(table.back());
  const size_t end =
      std::min(table.size(), static_cast<size_t>(pools_.window_start(job.landed() / pools_.page_tokens)));
  size_t begin = end;
  while (begin > 0 && table[begin - 1] != kNoPage) --begin;
  for (; begin < end; ++begin)
    tree_.leave(std::exchange(table[begin], kNoPage), is_worth_keeping(job, static_cast<int64_t>(begin)));
}

void Scheduler::release(Job& job) {
  tree_.release(job.pages);
  job.pages = {};
  job.computed = job.shared_pages = 0;
}

// Takes what the tree knows of the job's tokens in place of computing them. The last token is always
// computed: its logits are needed.
void Scheduler::look_up(Job& job) {
  if (!options_.prefix_cache) return;
  const auto size = static_cast<int64_t>(job.tokens.size());
  const int64_t most =
      std::min(size - 1, job.outputs_had < job.outputs_wanted ? job.outputs_had : int64_t{INT32_MAX});
  const PrefixTree::Match match =
      tree_.match(job.tenant, std::span(job.tokens).first(static_cast<size_t>(most)),
                  std::span(job.pages.full).first(static_cast<size_t>(job.shared_pages)));
  if (match.reach > job.shared_pages) job.branch_pages = match.reach;
  if (match.pages.full.empty()) return;
  const int64_t found = job.shared_pages + std::ssize(match.pages.full);
  const int64_t computed = found * pools_.page_tokens;
  QIAO_ASSERT(computed > job.computed);
  if (job.preemptions == 0) {
    const int64_t more = std::min(computed, job.prompt_tokens) - std::min(job.computed, job.prompt_tokens);
    job.cached_tokens += more;
    totals_.prefix_hits += more;
  }
  job.computed = computed;
  leave_window(job);
  replace(pools_.full, job.pages.full, job.shared_pages, match.pages.full);
  replace(pools_.sliding, job.pages.sliding, job.shared_pages, match.pages.sliding);
  job.shared_pages = found;
}

bool Scheduler::admit(Job& job) {
  const int64_t hits = totals_.prefix_hits, cached = job.cached_tokens;
  look_up(job);
  // The watermark: a page for each running job, which will need it soon.
  const auto tokens = static_cast<int64_t>(job.tokens.size());
  const int64_t need = pools_.pages_for(tokens) - std::ssize(job.pages.full);
  if (need + static_cast<int64_t>(running_.size()) > pools_.full.available()) {
    release(job);
    totals_.prefix_hits = hits;
    job.cached_tokens = cached;
    return false;
  }
  const bool fits = extend(job, tokens);
  QIAO_ASSERT(fits);
  const bool looks = job.outputs_wanted == 0 || job.outputs_had > 0;
  if (job.preemptions == 0 && looks && options_.prefix_cache) totals_.prefix_queries += job.prompt_tokens;
  return true;
}

void Scheduler::preempt_youngest() {
  const std::shared_ptr<Job> job = std::move(running_.back());
  running_.pop_back();
  release(*job);
  ++job->preemptions;
  ++totals_.preemptions;
  preempted_now_ = true;
  waiting_.push_front(job);
}

// Prompts have theirs. The oldest first, at the cost of the youngest. The oldest always finds room: the pool
// holds any one job.
void Scheduler::make_room_for_generated() {
  for (size_t i = 0; i < running_.size(); ++i) {
    const std::shared_ptr<Job> job = running_[i];
    while (!extend(*job, static_cast<int64_t>(job->tokens.size()))) {
      const bool itself = running_.back() == job;
      preempt_youngest();
      if (itself) break;
    }
  }
}

void Scheduler::admit_waiting() {
  // Strictly in order: whoever is passed by for its size would wait as long as smaller ones come.
  while (!preempted_now_ && !waiting_.empty() && static_cast<int64_t>(running_.size()) < options_.slots) {
    if (!admit(*waiting_.front())) break;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void Scheduler::plan_prompts(int64_t budget) {
  int64_t rows = options_.wanted_rows;
  // Answers under way with forced tokens to compute do not wait for others' prompts.
  for (const bool answering : {true, false}) {
    for (const std::shared_ptr<Job>& job : running_) {
      if (budget <= 0) return;
      if (!job->goes_on() || job->decodes() || job->embedding != embedding_turn_) continue;
      if ((job->computed >= job->prompt_tokens) != answering) continue;
      if (job->under_way == 0) look_up(*job);  // another request may have computed the same since
      int64_t count = std::min(job->pending(), budget);
      if (!job->embedding && job->wants_outputs()) {
        const int64_t had = std::max<int64_t>(0, job->outputs_had - job->computed);
        count = std::min(count, had + rows);
        rows -= std::max<int64_t>(0, count - had);
      }
      if (count <= 0) continue;
      plan_.push_back({job.get(), count});
      budget -= count;
    }
  }
}

int64_t Scheduler::draft_budget() const {
  int64_t budget = std::min(kDraftStepTokens, options_.batch_tokens);
  for (const StepEntry& entry : plan_) budget -= entry.count;
  return budget;
}

// So many of `wish` tokens behind the pending one find pages: no draft is worth a preemption.
int64_t Scheduler::room_for_draft(Job& job, int64_t wish) {
  if (extend(job, job.computed + 1 + wish)) return wish;
  return std::min(wish, std::ssize(job.pages.full) * pools_.page_tokens - job.computed - 1);
}

void Scheduler::plan_drafts() {
  int64_t budget = draft_budget();
  for (StepEntry& entry : plan_) {
    Job& job = *entry.job;
    if (!job.decodes()) return;  // those that decode come first
    job.draft.clear();
    if (options_.draft_tokens <= 0 || budget <= 0) continue;
    job.propose(std::min(options_.draft_tokens, budget));
    job.draft.resize(static_cast<size_t>(room_for_draft(job, std::ssize(job.draft))));
    entry.count += std::ssize(job.draft);
    budget -= std::ssize(job.draft);
  }
}

void Scheduler::draft(Drafter& drafter, int64_t most) {
  draft_tasks_.clear();
  for (const StepEntry& entry : plan_) {
    if (entry.job->decodes() && entry.job->draft.empty()) draft_tasks_.push_back({entry.job, 0});
  }
  int64_t budget = draft_budget(), left = std::ssize(draft_tasks_);
  for (DraftTask& task : draft_tasks_) {
    const int64_t share = task.job->draft_room(std::min(most, (budget + left - 1) / left));
    --left;
    task.most = share > 0 ? room_for_draft(*task.job, share) : 0;
    budget -= task.most;
  }
  std::erase_if(draft_tasks_, [](const DraftTask& task) { return task.most <= 0; });
  if (draft_tasks_.empty()) return;
  drafter.propose(draft_tasks_);
  for (StepEntry& entry : plan_) entry.count += entry.count == 1 ? std::ssize(entry.job->draft) : 0;
  take_sliding_pages();
}

// What goes on: a token of each that decodes, then prompts.
void Scheduler::plan_tokens() {
  admit_waiting();
  bool embeds = false, others = false;
  for (const std::shared_ptr<Job>& job : running_)
    if (job->goes_on()) (job->embedding ? embeds : others) = true;
  embedding_turn_ = embeds && (!others || !embedding_turn_);
  if (!embedding_turn_) {
    for (const std::shared_ptr<Job>& job : running_) {
      if (job->goes_on() && job->decodes()) plan_.push_back({job.get(), 1});
    }
  }
  // However many decode, prompts get on.
  plan_prompts(std::max<int64_t>(1, options_.batch_tokens - static_cast<int64_t>(plan_.size())));
}

const std::vector<StepEntry>& Scheduler::plan() {
  plan_.clear();
  preempted_now_ = false;
  make_room_for_generated();
  plan_tokens();
  plan_drafts();
  take_sliding_pages();
  return plan_;
}

const std::vector<StepEntry>& Scheduler::plan_ahead() {
  plan_.clear();
  preempted_now_ = false;
  // Who has to give way to whom is known when the step has ended: some leave then.
  for (const std::shared_ptr<Job>& job : running_) {
    if (job->goes_on() && !extend(*job, static_cast<int64_t>(job->tokens.size()) + job->awaited))
      return plan_;
  }
  const bool last_turn = embedding_turn_;
  plan_tokens();
  if (sliding_pages_wanted() > pools_.sliding.available()) {
    embedding_turn_ = last_turn;
    plan_.clear();
  }
  take_sliding_pages();
  return plan_;
}

void Scheduler::settle(std::span<const StepEntry> step) {
  for (const StepEntry& entry : step) {
    Job& job = *entry.job;
    // What was computed of a token that has ended the answer is not of it.
    const int64_t known = std::min(job.landed(), static_cast<int64_t>(job.tokens.size()));
    const int64_t full = known / pools_.page_tokens;
    if (options_.prefix_cache && full > job.shared_pages) {
      tree_.insert(job.tenant, std::span(job.tokens).first(static_cast<size_t>(known)), job.pages,
                   job.shared_pages);
      job.shared_pages = full;
    }
  }
  for (const std::shared_ptr<Job>& job : running_) leave_window(*job);
  remove_if([](const Job& job) { return (job.finished || job.leaves) && job.under_way == 0; });
}

void Scheduler::abandon(std::span<const StepEntry> step) {
  for (const StepEntry& entry : step) {
    entry.job->finished = true;
    entry.job->under_way = entry.job->awaited = 0;
  }
  remove_if([](const Job& job) { return job.finished; });
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = totals_;
  stats.running = static_cast<int64_t>(running_.size());
  stats.waiting = static_cast<int64_t>(waiting_.size());
  return stats;
}

}  // namespace qiao
