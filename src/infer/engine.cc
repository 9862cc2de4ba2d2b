#include "infer/engine.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "infer/draft_model.h"
#include "infer/engine_options.h"
#include "infer/saved_pages.h"
#include "infer/scheduler.h"
#include "infer/sequence.h"
#include "infer/step_runner.h"

namespace qiao {
namespace {

Sequence& as_sequence(Job& job) { return static_cast<Sequence&>(job); }
const Sequence& as_sequence(const Job& job) { return static_cast<const Sequence&>(job); }

std::unique_ptr<DraftModel> make_draft(const LanguageModel& model, const EngineOptions& o) {
  if (!o.draft) return nullptr;
  return std::make_unique<DraftModel>(o.draft, model, o.kv_dtype,
                                      DraftModel::Limits{.pages = o.pages,
                                                         .page_tokens = o.page_tokens,
                                                         .sequences = o.slots,
                                                         .pages_per_sequence = pages_per_sequence(o),
                                                         .tokens = most_step_tokens(o)});
}

}  // namespace

struct Engine::State {
  State(std::shared_ptr<LanguageModel> served, const EngineOptions& wished)
      : model(std::move(served)),
        options(complete_options(*model, wished)),
        cache(model->backend(), model->decoder().config(), options.pages, options.page_tokens,
              options.kv_dtype, options.sliding_pages),
        pools(options.pages, options.page_tokens, options.sliding_pages,
              model->decoder().config().sliding_window),
        tree(pools),
        scheduler(pools, tree,
                  {.slots = options.slots,
                   .batch_tokens = options.batch_tokens,
                   .wanted_rows = options.prompt_logprob_rows,
                   .prefix_cache = options.prefix_cache,
                   .draft_tokens = options.lookup}),
        runner(*model, cache, options.slots, pages_per_sequence(options), most_step_tokens(options),
               options.prompt_logprob_rows),
        drafter(make_draft(*model, options)) {
    if (options.cache_directory.empty() || !options.prefix_cache) return;
    saved.emplace(*model, cache, pools, tree, options.cache_directory, options.cache_directory_bytes);
    restored = saved->restore();
  }

  const std::shared_ptr<LanguageModel> model;
  const EngineOptions options;

  // Of the engine's thread.
  KvCache cache;
  PagePools pools;
  PrefixTree tree;
  Scheduler scheduler;
  StepRunner runner;
  std::unique_ptr<DraftModel> drafter;  // or null
  std::optional<SavedPages> saved;
  std::string restored;

  // Shared, under `mutex`.
  std::mutex mutex;
  std::condition_variable wake, idle;
  std::vector<std::shared_ptr<Sequence>> arrived;  // the scheduler has not seen them yet
  bool busy = false;                               // the scheduler has work
  bool draining = false, stopping = false;
  int saves_wanted = 0, saves_done = 0;
  std::string save_line;
  EngineStats totals;

  std::thread thread;

  void loop();
  void step();
  void publish();
  void save();
  template <typename Predicate>
  void cancel_if(Predicate gone);
};

// Makes the scheduler's numbers known to other threads. Required: the mutex is held.
void Engine::State::publish() {
  const SchedulerStats stats = scheduler.stats();
  busy = !scheduler.idle();
  totals.running = stats.running;
  totals.waiting = stats.waiting;
  totals.preemptions = stats.preemptions;
  totals.prefix_queries = stats.prefix_queries;
  totals.prefix_hits = stats.prefix_hits;
  totals.drafts = runner.drafts();
  totals.drafted_tokens = runner.drafted_tokens();
  totals.accepted_tokens = runner.accepted_tokens();
  totals.pages = {pools.full.total(), pools.full.used(), pools.full.cached()};
  totals.sliding_pages = {pools.sliding.total(), pools.sliding.used(), pools.sliding.cached()};
}

template <typename Predicate>
void Engine::State::cancel_if(Predicate gone) {
  for (const std::shared_ptr<Job>& job : scheduler.remove_if(gone))
    as_sequence(*job).finish(FinishReason::kCancelled);
}

void Engine::State::step() {
  const std::vector<StepEntry>& plan = scheduler.plan();
  if (plan.empty()) return;
  {
    const std::lock_guard lock(mutex);
    publish();
  }
  bool prefill = false;
  for (const StepEntry& entry : plan) {
    as_sequence(*entry.job).started();
    prefill |= entry.job->computed < entry.job->prompt_tokens;
  }
  const Clock::time_point begin = Clock::now();
  try {
    if (drafter) scheduler.draft(*drafter, options.draft_max);
    runner.run(plan);
    scheduler.settle();
  } catch (const std::exception& e) {
    for (const StepEntry& entry : plan) {
      if (!entry.job->finished) as_sequence(*entry.job).finish(FinishReason::kError, e.what());
    }
    scheduler.abandon();
  }
  const double took = std::chrono::duration<double>(Clock::now() - begin).count();
  const std::lock_guard lock(mutex);
  ++totals.steps;
  (prefill ? totals.prefill_seconds : totals.decode_seconds) += took;
}

// Does what save_cache() waits for.
void Engine::State::save() {
  std::string line = saved->save();
  const std::lock_guard lock(mutex);
  save_line = std::move(line);
  ++saves_done;
  idle.notify_all();
}

void Engine::State::loop() {
  std::vector<std::shared_ptr<Sequence>> fresh;
  while (true) {
    bool wants_save = false;
    {
      std::unique_lock lock(mutex);
      publish();
      if (!busy && arrived.empty()) idle.notify_all();
      wake.wait(lock, [&] { return stopping || busy || !arrived.empty() || saves_wanted > saves_done; });
      if (stopping) break;
      wants_save = saves_wanted > saves_done;
      fresh.swap(arrived);
      totals.waiting += static_cast<int64_t>(fresh.size());
      busy = true;
    }
    if (wants_save) save();
    for (std::shared_ptr<Sequence>& sequence : fresh) {
      sequence->begin();
      if (!sequence->finished) scheduler.enqueue(std::move(sequence));
    }
    fresh.clear();
    cancel_if([](const Job& job) { return as_sequence(job).generation()->cancelled(); });
    step();
  }
  cancel_if([](const Job&) { return true; });
  for (const auto& sequence : arrived) sequence->finish(FinishReason::kCancelled);
}

Engine::Engine(std::shared_ptr<LanguageModel> model, const EngineOptions& options)
    : state_(std::make_unique<State>(std::move(model), options)) {
  state_->publish();
  state_->thread = std::thread([this] { state_->loop(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake.notify_all();
  state_->thread.join();
}

std::shared_ptr<Generation> Engine::submit(GenerationRequest request, OnEvent on_event) {
  State& state = *state_;
  const EngineOptions& options = state.options;
  const int64_t vocabulary = state.model->decoder().config().vocabulary_size;
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens == 0)
    throw_error(ErrorKind::kInvalidInput, "prompt: has no tokens; at least one is needed");
  const int64_t most = options.context - (request.embedding || request.max_tokens == 0 ? 0 : 1);
  if (prompt_tokens > most) {
    const bool cache_is_full = options.context == options.pages * options.page_tokens;
    throw_error(
        ErrorKind::kInvalidInput,
        "prompt: {} tokens do not fit the context of {}{}; the least for it is {} (-c)", prompt_tokens,
        options.context,
        cache_is_full ? fmt::format(" ({} pages of {} tokens)", options.pages, options.page_tokens) : "",
        prompt_tokens + options.context - most);
  }
  for (const TokenId id : request.prompt) {
    if (id < 0 || id >= vocabulary) {
      throw_error(ErrorKind::kInvalidInput, "prompt: token id {} is not in the vocabulary of {}", id,
                  vocabulary);
    }
  }
  if (request.top_logprobs < 0 || request.top_logprobs > 20) {
    throw_error(ErrorKind::kInvalidInput, "top_logprobs: {} is out of range; allowed: 0 to 20",
                request.top_logprobs);
  }
  if (request.prompt_logprobs_from < 1 || request.prompt_logprobs_from > prompt_tokens) {
    throw_error(ErrorKind::kInvalidInput, "prompt_logprobs_from: {} is out of range; allowed: 1 to {}",
                request.prompt_logprobs_from, prompt_tokens);
  }
  request.sampling.validate(vocabulary);
  if (options.share_across_tenants) request.tenant.clear();
  const auto account = [this, inner = std::move(on_event)](const GenerationEvent& event) {
    if (event.finish != FinishReason::kNone) {
      const std::lock_guard lock(state_->mutex);
      EngineStats& totals = state_->totals;
      ++(event.finish == FinishReason::kCancelled ? totals.cancelled
         : event.finish == FinishReason::kError   ? totals.failed
                                                  : totals.finished);
      totals.prompt_tokens += event.prompt_tokens;
      totals.cached_tokens += event.cached_tokens;
      totals.completion_tokens += event.completion_tokens;
      totals.forced_tokens += event.forced_tokens;
    }
    inner(event);
  };
  auto sequence = std::make_shared<Sequence>(std::move(request), account, *state.model, options.context);
  if (state.saved) sequence->tenant = state.saved->tenant_name(sequence->tenant);
  const std::shared_ptr<Generation> generation = sequence->generation();
  {
    const std::lock_guard lock(state.mutex);
    if (state.draining || state.stopping) throw_error(ErrorKind::kUnavailable, "the server is shutting down");
    const int64_t places = options.max_queued + options.slots - state.totals.running;
    if (state.totals.waiting + static_cast<int64_t>(state.arrived.size()) >= places) {
      throw QueueFull(ErrorKind::kUnavailable,
                      fmt::format("the queue of {} requests is full; try again later", options.max_queued));
    }
    state.arrived.push_back(std::move(sequence));
    ++state.totals.requests;
  }
  state.wake.notify_all();
  return generation;
}

void Engine::drain() {
  std::unique_lock lock(state_->mutex);
  state_->draining = true;
  state_->idle.wait(lock, [&] { return !state_->busy && state_->arrived.empty(); });
}

std::string Engine::save_cache() {
  if (!state_->saved) return "";
  std::unique_lock lock(state_->mutex);
  const int mine = ++state_->saves_wanted;
  state_->wake.notify_all();
  state_->idle.wait(lock, [&] { return state_->saves_done >= mine; });
  return state_->save_line;
}

const std::string& Engine::restored() const { return state_->restored; }
const EngineOptions& Engine::options() const { return state_->options; }
const LanguageModel& Engine::model() const { return *state_->model; }

uint64_t Engine::cache_bytes() const { return qiao::cache_bytes(model(), state_->options); }

EngineStats Engine::stats() const {
  const std::lock_guard lock(state_->mutex);
  EngineStats stats = state_->totals;
  stats.waiting += static_cast<int64_t>(state_->arrived.size());
  return stats;
}

}  // namespace qiao
