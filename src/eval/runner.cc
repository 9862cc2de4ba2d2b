#include "eval/runner.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <unordered_map>

#include "base/error.h"

namespace qiao::eval {
namespace {

// What events of the engine's thread leave for the one that waits.
struct Inbox {
  std::mutex mutex;
  std::condition_variable arrived;
  std::vector<size_t> ended;
};

// A request under way or done: written by the engine's thread until it is in Inbox::ended.
struct Progressing {
  Outcome outcome;
  std::string error;
  ErrorKind error_kind = ErrorKind::kIo;
  int64_t computed_tokens = 0;

  void take(const GenerationEvent& event) {
    for (const TokenLogprobs& token : event.prompt_logprobs) outcome.log_likelihood += token.logprob;
    outcome.text += event.text;
    if (event.finish == FinishReason::kNone) return;
    outcome.finish = event.finish;
    error = event.error;
    error_kind = event.error_kind;
    computed_tokens = event.prompt_tokens - event.cached_tokens + event.completion_tokens;
  }
};

class TaskRun {
 public:
  TaskRun(Engine& engine, const Task& task, const std::string& adapter, const RunWatch& watch)
      : engine_(engine), task_(task), adapter_(adapter), watch_(watch), runs_(task.requests().size()) {
    for (size_t i = 0; i < runs_.size(); ++i) {
      const int64_t after = task.requests()[i].after;
      after < 0 ? ready_.push_back(i) : waiting_[static_cast<size_t>(after)].push_back(i);
    }
  }
  ~TaskRun() {  // events write into this
    failed_ = true;
    for (const auto& [index, generation] : under_way_) generation->cancel();
    while (!under_way_.empty()) wait();
  }
  TaskRun(const TaskRun&) = delete;
  TaskRun& operator=(const TaskRun&) = delete;

  void run() {
    // Twice as many as run at once: a slot never waits for this thread.
    const auto most =
        static_cast<size_t>(engine_.options().slots + std::min<int64_t>(engine_.options().slots, 64));
    while (done_ < runs_.size()) {
      while (!ready_.empty() && under_way_.size() < most) submit();
      wait();
      if (watch_.progress) watch_.progress(done_);
      if (watch_.should_stop && watch_.should_stop()) throw_error(ErrorKind::kCancelled, "interrupted");
    }
  }

  std::vector<Outcome> take_outcomes() {
    std::vector<Outcome> outcomes;
    for (Progressing& one : runs_) outcomes.push_back(std::move(one.outcome));
    return outcomes;
  }
  int64_t computed_tokens() const { return computed_tokens_; }

 private:
  void submit() {
    const size_t index = ready_.front();
    ready_.pop_front();
    GenerationRequest request = task_.request(index);
    request.adapter = adapter_;
    under_way_[index] = engine_.submit(std::move(request), [this, index](const GenerationEvent& event) {
      runs_[index].take(event);
      if (event.finish == FinishReason::kNone) return;
      const std::lock_guard lock(inbox_.mutex);
      inbox_.ended.push_back(index);
      inbox_.arrived.notify_one();
    });
  }

  // Until a request ends, or a moment later: the watch wants to be asked.
  void wait() {
    std::vector<size_t> ended;
    {
      std::unique_lock lock(inbox_.mutex);
      inbox_.arrived.wait_for(lock, std::chrono::milliseconds(50), [&] { return !inbox_.ended.empty(); });
      ended.swap(inbox_.ended);
    }
    for (const size_t index : ended) {
      under_way_.erase(index);
      ++done_;
      computed_tokens_ += runs_[index].computed_tokens;
      // Next in line: what they share with it is still in the cache.
      if (const auto found = waiting_.find(index); found != waiting_.end())
        ready_.insert(ready_.begin(), found->second.begin(), found->second.end());
    }
    for (const size_t index : ended) {
      const Progressing& one = runs_[index];
      if (one.outcome.finish == FinishReason::kError && !failed_) {
        failed_ = true;  // once: the others are cancelled on the way out
        throw Error(one.error_kind, one.error);
      }
    }
  }

  Engine& engine_;
  const Task& task_;
  const std::string& adapter_;
  const RunWatch& watch_;
  std::vector<Progressing> runs_;
  std::deque<size_t> ready_;
  std::unordered_map<size_t, std::vector<size_t>> waiting_;  // by whom they wait for
  std::unordered_map<size_t, std::shared_ptr<Generation>> under_way_;
  size_t done_ = 0;
  int64_t computed_tokens_ = 0;
  bool failed_ = false;
  Inbox inbox_;
};

}  // namespace

TaskResult run_task(Engine& engine, const Task& task, const std::string& adapter, const RunWatch& watch,
                    bool with_samples) {
  const auto begin = std::chrono::steady_clock::now();
  TaskRun run(engine, task, adapter, watch);
  run.run();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  TaskResult result = task.score(run.take_outcomes(), with_samples);
  result.adapter = adapter;
  result.seconds = seconds;
  result.computed_tokens = run.computed_tokens();
  for (Json& sample : result.samples) {
    if (!adapter.empty()) sample["adapter"] = adapter;
  }
  return result;
}

}  // namespace qiao::eval
