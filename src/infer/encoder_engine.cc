#include "infer/encoder_engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <span>
#include <thread>

#include "base/error.h"

namespace qiao {

constexpr int64_t kMaxBatchSequences = 1024;

struct EncoderJob {
  std::vector<EncoderInput> inputs;
  EncoderEngine::OnDone on_done;
  std::shared_ptr<Generation> handle = std::make_shared<Generation>();
  EncoderOutcome outcome;
  size_t next = 0;  // the first input that is in no batch yet
};

struct BatchedInput {
  std::shared_ptr<EncoderJob> job;
  size_t index;
};

struct EncoderEngine::State {
  std::shared_ptr<EmbeddingModel> model;
  EncoderEngineOptions options;
  std::unique_ptr<Encoder::Workspace> workspace;

  mutable std::mutex mutex;
  std::condition_variable work, idle;
  std::deque<std::shared_ptr<EncoderJob>> jobs;  // with inputs that wait; they take turns
  EngineStats stats;
  bool draining = false, stopping = false, busy = false;
  std::unique_ptr<DeviceRestarts> restarts;
  std::thread thread;

  void run();
  std::vector<BatchedInput> take_batch(std::vector<std::shared_ptr<EncoderJob>>& ended);
  void compute(std::span<const BatchedInput> batch);
  void compute_parts(std::span<const BatchedInput> batch);
  void make_workspace();
  bool restart(const std::string& why, std::span<const BatchedInput> batch);
  void finish(EncoderJob& job);
};

// The next inputs, in turn of the requests that wait; requests that need no more work go to `ended`. With the
// mutex held.
std::vector<BatchedInput> EncoderEngine::State::take_batch(std::vector<std::shared_ptr<EncoderJob>>& ended) {
  std::vector<BatchedInput> batch;
  int64_t tokens = 0;
  while (!jobs.empty() && static_cast<int64_t>(batch.size()) < kMaxBatchSequences) {
    const std::shared_ptr<EncoderJob> job = jobs.front();
    if (job->handle->cancelled() || stopping || !job->outcome.error.empty()) {
      if (job->outcome.error.empty()) job->outcome.finish = FinishReason::kCancelled;
      stats.waiting -= static_cast<int64_t>(job->inputs.size() - job->next);
      jobs.pop_front();
      ended.push_back(job);
      // Its inputs that this batch has already taken would be answered twice.
      std::erase_if(batch, [&](const BatchedInput& input) { return input.job == job; });
      continue;
    }
    const auto length = static_cast<int64_t>(job->inputs[job->next].tokens.size());
    if (!batch.empty() && tokens + length > options.batch_tokens) break;
    tokens += length;
    batch.push_back({job, job->next++});
    --stats.waiting;
    jobs.pop_front();
    if (job->next < job->inputs.size()) jobs.push_back(job);
  }
  return batch;
}

void EncoderEngine::State::compute(std::span<const BatchedInput> batch) {
  std::vector<int32_t> tokens, types, starts = {0};
  for (const BatchedInput& entry : batch) {
    const EncoderInput& input = entry.job->inputs[entry.index];
    tokens.insert(tokens.end(), input.tokens.begin(), input.tokens.end());
    types.insert(types.end(), input.types.begin(), input.types.end());
    types.resize(tokens.size());
    starts.push_back(static_cast<int32_t>(tokens.size()));
  }
  const Tensor hidden = model->encoder().forward({tokens, types, starts}, *workspace);
  std::vector<float> rows(static_cast<size_t>(hidden.elements()));
  model->backend().download(rows.data(), hidden.data, rows.size() * sizeof(float));
  const auto width = static_cast<size_t>(hidden.shape[1]);
  for (size_t s = 0; s < batch.size(); ++s) {
    const size_t begin = static_cast<size_t>(starts[s]) * width,
                 end = static_cast<size_t>(starts[s + 1]) * width;
    batch[s].job->outcome.vectors[batch[s].index] =
        model->pooling().apply(std::span(rows).subspan(begin, end - begin), hidden.shape[1]);
  }
}

// Where memory does not do for a batch, its halves may need less.
void EncoderEngine::State::compute_parts(std::span<const BatchedInput> batch) {
  std::string problem;
  ErrorKind kind = ErrorKind::kIo;
  try {
    return compute(batch);
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::kDeviceLost) throw;
    problem = e.what();
    kind = e.kind();
  } catch (const std::exception& e) {
    problem = e.what();
  }
  if (kind == ErrorKind::kTooLarge && batch.size() > 1) {
    compute_parts(batch.first(batch.size() / 2));
    return compute_parts(batch.subspan(batch.size() / 2));
  }
  for (const BatchedInput& input : batch) {
    EncoderOutcome& outcome = input.job->outcome;
    outcome.error = problem;
    outcome.error_kind = kind == ErrorKind::kTooLarge ? ErrorKind::kUnavailable : kind;
    outcome.finish = FinishReason::kError;
  }
}

void EncoderEngine::State::make_workspace() {
  workspace = model->encoder().make_workspace({options.batch_tokens, kMaxBatchSequences});
}

// All requests end, those in `batch` and those that wait. False: the device is not had again.
bool EncoderEngine::State::restart(const std::string& why, std::span<const BatchedInput> batch) {
  std::set<std::shared_ptr<EncoderJob>> lost;
  for (const BatchedInput& input : batch) lost.insert(input.job);
  {
    const std::lock_guard lock(mutex);
    stats.condition = EngineCondition::kRestarting;
    lost.insert(jobs.begin(), jobs.end());
    jobs.clear();
    stats.waiting = 0;
  }
  for (const std::shared_ptr<EncoderJob>& job : lost) {
    job->outcome.error = why;
    job->outcome.error_kind = ErrorKind::kDeviceLost;
    job->outcome.finish = FinishReason::kError;
    finish(*job);
  }
  workspace.reset();
  const bool had = restarts->restart(why, std::ssize(lost), [&] {
    model->drop_chip();
    model->load_chip();
    make_workspace();
  });
  const std::lock_guard lock(mutex);
  stats.condition = had ? EngineCondition::kServing : EngineCondition::kEnded;
  stats.device_restarts = restarts->total();
  return had;
}

void EncoderEngine::State::finish(EncoderJob& job) {
  if (job.outcome.finish != FinishReason::kStop) job.outcome.vectors.clear();
  {
    const std::lock_guard lock(mutex);
    --stats.running;
    if (job.outcome.finish == FinishReason::kStop) ++stats.finished;
    if (job.outcome.finish == FinishReason::kCancelled) ++stats.cancelled;
    if (job.outcome.finish == FinishReason::kError) ++stats.failed;
    if (job.outcome.finish == FinishReason::kStop) stats.prompt_tokens += job.outcome.prompt_tokens;
  }
  job.on_done(job.outcome);
}

void EncoderEngine::State::run() {
  std::unique_lock lock(mutex);
  while (true) {
    busy = false;
    if (jobs.empty()) idle.notify_all();
    work.wait(lock, [&] { return stopping || !jobs.empty(); });
    if (stopping && jobs.empty()) return;
    busy = true;
    std::vector<std::shared_ptr<EncoderJob>> ended;
    std::vector<BatchedInput> batch = take_batch(ended);
    lock.unlock();
    const auto start = std::chrono::steady_clock::now();
    bool goes_on = true;
    if (!batch.empty()) {
      try {
        compute_parts(batch);
      } catch (const Error& e) {
        goes_on = restart(e.what(), batch);
        batch.clear();
      }
    }
    for (const BatchedInput& input : batch) {
      // The last input of a request ends it; so does an error where nothing of it waits any more.
      if (input.index + 1 == input.job->inputs.size()) ended.push_back(input.job);
    }
    for (const std::shared_ptr<EncoderJob>& job : ended) finish(*job);
    ended.clear();
    lock.lock();
    if (!goes_on) {
      busy = false;
      idle.notify_all();
      return;
    }
    ++stats.steps;
    stats.prefill_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
}

EncoderEngine::EncoderEngine(std::shared_ptr<EmbeddingModel> model, const EncoderEngineOptions& options)
    : state_(std::make_unique<State>()) {
  state_->model = std::move(model);
  state_->options = options;
  state_->options.batch_tokens = std::max(options.batch_tokens, state_->model->max_tokens());
  state_->restarts = std::make_unique<DeviceRestarts>(options.on_device_lost);
  state_->make_workspace();
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

EncoderEngine::~EncoderEngine() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->work.notify_all();
  state_->thread.join();
}

std::shared_ptr<Generation> EncoderEngine::submit(std::vector<EncoderInput> inputs, OnDone on_done) {
  const EmbeddingModel& model = *state_->model;
  if (inputs.empty()) throw_error(ErrorKind::kInvalidInput, "input: is empty");
  const auto job = std::make_shared<EncoderJob>();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const EncoderInput& input = inputs[i];
    const auto length = static_cast<int64_t>(input.tokens.size());
    if (length < 1 || length > model.max_tokens()) {
      throw_error(ErrorKind::kInvalidInput, "input[{}]: {} tokens; the model takes 1 to {}", i, length,
                  model.max_tokens());
    }
    for (const TokenId id : input.tokens) {
      if (id < 0 || id >= model.config().vocabulary_size)
        throw_error(ErrorKind::kInvalidInput, "input[{}]: {} is no token of this model", i, id);
    }
    job->outcome.prompt_tokens += length;
  }
  job->inputs = std::move(inputs);
  job->outcome.vectors.resize(job->inputs.size());
  job->on_done = std::move(on_done);
  const auto count = static_cast<int64_t>(job->inputs.size());
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->draining || state_->stopping)
      throw_error(ErrorKind::kUnavailable, "the server is shutting down");
    require_serving(state_->stats.condition);
    if (state_->stats.waiting + count > state_->options.max_queued) {
      throw QueueFull(ErrorKind::kUnavailable,
                      fmt::format("{} inputs are waiting, at most {} may; try again later",
                                  state_->stats.waiting, state_->options.max_queued));
    }
    state_->stats.waiting += count;
    ++state_->stats.requests;
    ++state_->stats.running;
    state_->jobs.push_back(job);
  }
  state_->work.notify_one();
  return job->handle;
}

void EncoderEngine::drain() {
  std::unique_lock lock(state_->mutex);
  state_->draining = true;
  state_->idle.wait(lock, [&] { return state_->jobs.empty() && !state_->busy; });
}

const EmbeddingModel& EncoderEngine::model() const { return *state_->model; }

EngineStats EncoderEngine::stats() const {
  const std::lock_guard lock(state_->mutex);
  return state_->stats;
}

}  // namespace qiao
