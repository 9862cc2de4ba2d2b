#include "infer/engine.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "infer/engine_core.h"
#include "infer/engine_options.h"

namespace qiao {
namespace {

Sequence& as_sequence(Job& job) { return static_cast<Sequence&>(job); }
const Sequence& as_sequence(const Job& job) { return static_cast<const Sequence&>(job); }

EngineMemory memory_of(const LanguageModel& model, const EngineOptions& o) {
  const DeviceInfo device = model.backend().describe();
  return {.weights = model.decoder().weight_bytes() + (o.draft ? o.draft->decoder().weight_bytes() : 0),
          .cache = cache_bytes(model, o),
          .workspace = workspace_bytes(model, o),
          .free = device.free_bytes,
          .total = device.memory_bytes};
}

}  // namespace

struct Engine::State {
  State(std::shared_ptr<LanguageModel> served, const EngineOptions& wished)
      : model(std::move(served)),
        options(complete_options(*model, wished)),
        core(std::make_unique<EngineCore>(*model, options, /*restore=*/true)),
        memory(memory_of(*model, options)),
        restored(core->restored()),
        restarts(options.on_device_lost) {}

  const std::shared_ptr<LanguageModel> model;
  const EngineOptions options;

  // Of the engine's thread, which puts another in its place with the mutex held; null while there is none.
  std::unique_ptr<EngineCore> core;
  const EngineMemory memory;  // at the start
  const std::string restored;
  DeviceRestarts restarts;

  // Shared, under `mutex`.
  std::mutex mutex;
  std::condition_variable wake, idle;
  std::vector<std::shared_ptr<Sequence>> arrived;  // the scheduler has not seen them yet
  bool busy = false;                               // the core has work
  bool draining = false, stopping = false;
  int saves_wanted = 0, saves_done = 0;
  std::string save_line;
  EngineStats totals;

  std::thread thread;

  void loop();
  bool step();
  bool restart(const std::string& why);
  int64_t fail_all(const std::string& why);
  void publish();
  void save();
  template <typename Predicate>
  void cancel_if(Predicate gone);
};

// Makes the core's numbers known to other threads. Required: the mutex is held.
void Engine::State::publish() {
  busy = core != nullptr && !core->idle();
  if (core) core->report(totals);
}

template <typename Predicate>
void Engine::State::cancel_if(Predicate gone) {
  for (const std::shared_ptr<Job>& job : core->remove_if(gone))
    as_sequence(*job).finish(FinishReason::kCancelled);
}

// False: the device is lost and not had again.
bool Engine::State::step() {
  if (!core->plan()) return true;
  {
    const std::lock_guard lock(mutex);
    publish();
  }
  const Clock::time_point begin = Clock::now();
  std::optional<bool> prefill;
  try {
    prefill = core->run();
  } catch (const Error& e) {
    return restart(e.what());
  }
  const double took = std::chrono::duration<double>(Clock::now() - begin).count();
  const std::lock_guard lock(mutex);
  totals.steps += prefill ? 1 : 0;
  (prefill.value_or(false) ? totals.prefill_seconds : totals.decode_seconds) += took;
  return true;
}

// Ends every request that was taken; returns how many.
int64_t Engine::State::fail_all(const std::string& why) {
  std::vector<std::shared_ptr<Sequence>> queued;
  {
    const std::lock_guard lock(mutex);
    totals.condition = EngineCondition::kRestarting;
    queued.swap(arrived);
  }
  int64_t failed = 0;
  const auto fail = [&](Sequence& sequence) {
    if (sequence.finished) return;
    sequence.finish(FinishReason::kError, why, ErrorKind::kDeviceLost);
    ++failed;
  };
  for (const std::shared_ptr<Job>& job : core->remove_if([](const Job&) { return true; }))
    fail(as_sequence(*job));
  for (const std::shared_ptr<Sequence>& sequence : queued) fail(*sequence);
  return failed;
}

bool Engine::State::restart(const std::string& why) {
  const int64_t failed = fail_all(why);
  {
    const std::lock_guard lock(mutex);
    publish();
    core.reset();
  }
  const bool had = restarts.restart(why, failed, [&] {
    model->drop_chip();
    if (options.draft) options.draft->drop_chip();
    model->load_chip();
    if (options.draft) options.draft->load_chip();
    auto made = std::make_unique<EngineCore>(*model, options, /*restore=*/false);
    const std::lock_guard lock(mutex);
    core = std::move(made);
  });
  const std::lock_guard lock(mutex);
  totals.condition = had ? EngineCondition::kServing : EngineCondition::kEnded;
  totals.device_restarts = restarts.total();
  publish();
  return had;
}

// Does what save_cache() waits for.
void Engine::State::save() {
  std::string line = core->saved()->save();
  const std::lock_guard lock(mutex);
  save_line = std::move(line);
  ++saves_done;
  idle.notify_all();
}

void Engine::State::loop() {
  std::vector<std::shared_ptr<Sequence>> fresh;
  bool goes_on = true;
  while (goes_on) {
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
      if (!sequence->finished) core->enqueue(std::move(sequence));
    }
    fresh.clear();
    cancel_if([](const Job& job) { return as_sequence(job).generation()->cancelled() && !job.finished; });
    goes_on = step();
  }
  if (core) cancel_if([](const Job& job) { return !job.finished; });
  {
    const std::lock_guard lock(mutex);
    fresh.swap(arrived);
    idle.notify_all();  // whoever waits for an engine that has given up
  }
  for (const auto& sequence : fresh) sequence->finish(FinishReason::kCancelled);
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
  const int64_t vocabulary = state.model->config().vocabulary_size;
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
  const std::shared_ptr<Generation> generation = sequence->generation();
  {
    const std::lock_guard lock(state.mutex);
    if (state.draining || state.stopping) throw_error(ErrorKind::kUnavailable, "the server is shutting down");
    require_serving(state.totals.condition);
    if (const SavedPages* saved = state.core->saved())
      sequence->tenant = saved->tenant_name(sequence->tenant);
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
  std::unique_lock lock(state_->mutex);
  if (state_->core == nullptr || state_->core->saved() == nullptr) return "";
  const int mine = ++state_->saves_wanted;
  state_->wake.notify_all();
  const auto ended = [&] { return state_->totals.condition == EngineCondition::kEnded; };
  state_->idle.wait(lock, [&] { return state_->saves_done >= mine || ended(); });
  return ended() ? "" : state_->save_line;
}

const std::string& Engine::restored() const { return state_->restored; }
const EngineOptions& Engine::options() const { return state_->options; }
const LanguageModel& Engine::model() const { return *state_->model; }

EngineMemory Engine::memory() const { return state_->memory; }

EngineStats Engine::stats() const {
  const std::lock_guard lock(state_->mutex);
  EngineStats stats = state_->totals;
  stats.waiting += static_cast<int64_t>(state_->arrived.size());
  return stats;
}

}  // namespace qiao
