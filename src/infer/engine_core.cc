#include "infer/engine_core.h"

#include <utility>

#include "base/error.h"
#include "infer/engine_options.h"

namespace qiao {
namespace {

Sequence& sequence_in(const StepEntry& entry) { return static_cast<Sequence&>(*entry.job); }

std::unique_ptr<DraftModel> make_draft(const LanguageModel& model, const EngineOptions& o) {
  if (!o.draft) return nullptr;
  return std::make_unique<DraftModel>(o.draft, model, o.kv_dtype, draft_limits(o));
}

}  // namespace

EngineCore::EngineCore(const LanguageModel& model, const EngineOptions& options, bool restore)
    : options_(options),
      cache_(model.backend(), model.config(), options.pages, options.page_tokens, options.kv_dtype,
             options.sliding_pages),
      pools_(options.pages, options.page_tokens, options.sliding_pages, model.config().sliding_window),
      tree_(pools_),
      scheduler_(pools_, tree_,
                 {.slots = options.slots,
                  .batch_tokens = options.batch_tokens,
                  .wanted_rows = options.prompt_logprob_rows,
                  .prefix_cache = options.prefix_cache,
                  .draft_tokens = options.lookup}),
      runner_(model, cache_, step_limits(options)),
      drafter_(make_draft(model, options)),
      runs_ahead_(runs_ahead(model, options)) {
  if (options.cache_directory.empty() || !options.prefix_cache) return;
  saved_.emplace(model, cache_, pools_, tree_, options.cache_directory, options.cache_directory_bytes);
  if (restore) restored_ = saved_->restore();
}

bool EngineCore::plan() {
  plan_ = runner_.under_way() > 0 ? &scheduler_.plan_ahead() : &scheduler_.plan();
  return !plan_->empty() || runner_.under_way() > 0;
}

std::optional<bool> EngineCore::run() {
  try {
    return advance();
  } catch (const std::exception& e) {
    const auto* error = dynamic_cast<const Error*>(&e);
    if (error != nullptr && error->kind() == ErrorKind::kDeviceLost) throw;
    fail(e.what());
    return false;
  }
}

std::optional<bool> EngineCore::advance() {
  bool prefill = false;
  for (const StepEntry& entry : *plan_) {
    sequence_in(entry).started();
    prefill |= entry.job->computed < entry.job->prompt_tokens;
  }
  if (runner_.under_way() > 0) {
    // Without memory for it now it is planned again when nothing is under way, and then run in parts.
    if (!plan_->empty()) launch();
    scheduler_.settle(runner_.land());
    return std::exchange(prefill_, prefill);
  }
  if (runs_ahead_ && launch()) {
    prefill_ = prefill;
    return std::nullopt;
  }
  draft();
  run_parts(*plan_);
  scheduler_.settle(*plan_);
  return prefill;
}

// False: there is no memory for it, and nothing has changed.
bool EngineCore::launch() {
  try {
    runner_.launch(*plan_);
    return runner_.under_way() > 0;
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kTooLarge) throw;
    return false;
  }
}

// The requests of the step that was planned, and of those under way, end.
void EngineCore::fail(const std::string& what) {
  std::vector<StepEntry> entries = runner_.forget();
  entries.insert(entries.end(), plan_->begin(), plan_->end());
  for (const StepEntry& entry : entries) {
    if (!entry.job->finished) sequence_in(entry).finish(FinishReason::kError, what);
  }
  scheduler_.abandon(entries);
}

// A draft that finds no memory is none.
void EngineCore::draft() {
  if (!drafter_) return;
  try {
    scheduler_.draft(*drafter_, options_.draft_max);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kTooLarge) throw;
    for (const StepEntry& entry : *plan_) {
      if (entry.count == 1) entry.job->draft.clear();
    }
  }
}

// Where the chip's memory does not do for a step, its parts may need less: half of the sequences, then no
// draft, then half of a prompt's tokens, whose rest comes in a later step. No answer depends on it.
void EngineCore::run_parts(std::span<const StepEntry> entries) {
  std::string problem;
  try {
    return runner_.run(entries);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kTooLarge) throw;
    problem = e.what();
  }
  if (entries.size() > 1) {
    const size_t half = entries.size() / 2;
    run_parts(entries.first(half));
    return run_parts(entries.subspan(half));
  }
  StepEntry entry = entries.front();
  Sequence& sequence = sequence_in(entry);
  if (sequence.finished) return;
  if (entry.count > 1) {
    entry.count = sequence.draft.empty() ? entry.count / 2 : 1;
    sequence.draft.clear();
    return run_parts({&entry, 1});
  }
  try {
    runner_.run(entries);  // whoever else took the memory may have given it back
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kTooLarge) throw;
    sequence.finish(FinishReason::kError, fmt::format("there is no memory for this request: {}", problem),
                    ErrorKind::kUnavailable);
  }
}

void EngineCore::report(EngineStats& stats) const {
  const SchedulerStats scheduled = scheduler_.stats();
  stats.running = scheduled.running;
  stats.waiting = scheduled.waiting;
  stats.preemptions = scheduled.preemptions;
  stats.prefix_queries = scheduled.prefix_queries;
  stats.prefix_hits = scheduled.prefix_hits;
  stats.drafts = runner_.drafts();
  stats.drafted_tokens = runner_.drafted_tokens();
  stats.accepted_tokens = runner_.accepted_tokens();
  stats.ahead_steps = runner_.ahead_steps();
  stats.pages = {pools_.full.total(), pools_.full.used(), pools_.full.cached()};
  stats.sliding_pages = {pools_.sliding.total(), pools_.sliding.used(), pools_.sliding.cached()};
}

}  // namespace qiao
