// Runs requests on an engine over the tiny golden chat model, and waits for their answers.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "infer/engine.h"

namespace qiao::testing {

// Two LoRA adapters for the chat model.
inline std::vector<AdapterSource> chat_adapters() {
  const auto folder = std::filesystem::path(QIAO_TEST_DATA) / "golden" / "lora";
  return {{"one", folder / "chat-one"}, {"two", folder / "chat-two"}};
}

inline std::shared_ptr<LanguageModel> load_chat_model(int threads = 1, const std::string& device = "cpu",
                                                      const std::vector<AdapterSource>& adapters = {}) {
  LanguageModelOptions options;
  options.adapters = adapters;
  options.device = device;
  options.threads = threads;
  return LanguageModel::load(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "chat", options);
}

struct Answer {
  std::string text;
  std::vector<TokenId> tokens;
  std::vector<TokenLogprobs> logprobs, prompt_logprobs;
  GenerationEvent last;
  int last_events = 0;
};

// One request under way. Destroy only after wait().
class Pending {
 public:
  // `then`, on the engine's thread behind each event but the last, at which a test may end: while it waits,
  // the engine does.
  Pending(Engine& engine, GenerationRequest request, std::function<void()> then = {}) {
    const bool logprobs = request.logprobs;
    generation = engine.submit(std::move(request), [this, logprobs, then](const GenerationEvent& event) {
      const bool is_last = event.finish != FinishReason::kNone;
      take(event, logprobs);
      if (then && !is_last) then();
    });
  }

  Answer wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return answer_.last_events > 0; });
    return answer_;
  }
  void wait_for_tokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return answer_.tokens.size() >= count || answer_.last_events > 0; });
  }

  std::shared_ptr<Generation> generation;

 private:
  void take(const GenerationEvent& event, bool logprobs) {
    const std::lock_guard lock(mutex_);
    if (event.has_token) {
      answer_.tokens.push_back(event.token);
      if (logprobs) answer_.logprobs.push_back(event.logprobs);
    }
    if (!event.prompt_logprobs.empty()) answer_.prompt_logprobs = event.prompt_logprobs;
    answer_.text += event.text;
    if (event.finish != FinishReason::kNone) {
      answer_.last = event;
      ++answer_.last_events;
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Answer answer_;
};

inline Answer run(Engine& engine, GenerationRequest request) {
  return Pending(engine, std::move(request)).wait();
}

inline GenerationRequest greedy(const LanguageModel& model, std::string_view text, int64_t max_tokens = 24) {
  GenerationRequest request;
  request.prompt = model.tokenizer().encode(text);
  request.sampling.temperature = 0.0f;
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  return request;
}

// Requests that were given one after the other, with pauses between some; some were cancelled. Half of the
// time the engine is held at the first one's first event until all are there: in company, however fast it is.
struct RandomRequests {
  std::vector<std::unique_ptr<Pending>> pending;
  std::vector<bool> cancelled;

  RandomRequests(Engine& engine, const std::vector<GenerationRequest>& list, std::mt19937_64& random)
      : cancelled(list.size()) {
    std::promise<void> all_there;
    std::function<void()> hold;
    if (random() % 2 == 0) hold = [there = all_there.get_future().share()] { there.wait(); };
    for (size_t i = 0; i < list.size(); ++i) {
      pending.push_back(std::make_unique<Pending>(engine, list[i], i == 0 ? hold : nullptr));
      if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
      if (random() % 8 == 0) {
        const size_t victim = random() % (i + 1);
        cancelled[victim] = true;
        pending[victim]->generation->cancel();
      }
    }
    all_there.set_value();
  }

  // Waits for all; check(i, answer) hears of those that ended of themselves.
  template <typename Check>
  void wait(Check check) {
    for (size_t i = 0; i < pending.size(); ++i) {
      const Answer answer = pending[i]->wait();
      EXPECT_EQ(answer.last_events, 1);
      if (!cancelled[i] || answer.last.finish != FinishReason::kCancelled) check(i, answer);
    }
  }
};

}  // namespace qiao::testing
