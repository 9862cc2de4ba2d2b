// The engine on the CUDA chip: the same bytes alone and in company, and what becomes of requests where memory
// or the device fails in mid-run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <mutex>
#include <thread>

#include "backend/cuda_stand_in/stand_in.h"
#include "infer/engine_harness.h"

namespace qiao {
namespace {

using testing::Answer;
using testing::greedy;
using ::testing::HasSubstr;
using testing::load_chat_model;
using testing::Pending;
using testing::run;

std::vector<GenerationRequest> some_requests(const LanguageModel& model) {
  std::vector<GenerationRequest> list;
  for (const std::string_view text : {"A bridge", "carries people over a river; this one", "x"}) {
    GenerationRequest request = greedy(model, text, 8);
    request.logprobs = true;
    list.push_back(request);
    request.sampling.temperature = 0.9f;
    request.sampling.top_k = 20;
    request.sampling.top_p = 0.9f;
    request.sampling.seed = 7;
    request.sampling.frequency_penalty = 0.5f;
    list.push_back(request);
  }
  return list;
}

TEST(CudaEngineTest, AnswersAreTheSameBytesAloneAndInCompany) {
  const auto model = load_chat_model(1, "cuda");
  std::vector<Answer> alone;
  {
    Engine engine(model, {});
    for (const GenerationRequest& request : some_requests(*model)) alone.push_back(run(engine, request));
  }
  Engine engine(model, {});
  std::vector<std::unique_ptr<Pending>> pending;
  for (const GenerationRequest& request : some_requests(*model)) {
    pending.push_back(std::make_unique<Pending>(engine, request));
  }
  for (size_t i = 0; i < alone.size(); ++i) {
    const Answer together = pending[i]->wait();
    EXPECT_EQ(together.tokens, alone[i].tokens) << i;
    EXPECT_EQ(together.tokens.size(), 8u) << i;
    for (size_t t = 0; t < alone[i].logprobs.size(); ++t)
      EXPECT_EQ(together.logprobs[t].logprob, alone[i].logprobs[t].logprob) << i;
  }
}

// Seven steps of decoding after the first token and eight draws: each called once, then one launch.
TEST(CudaEngineTest, DecodingIsOneLaunchAStep) {
  const auto model = load_chat_model(1, "cuda");
  Engine engine(model, {});
  const int before = stand_in::use().graph_launches;
  const Answer answer = run(engine, greedy(*model, "A bridge", 8));
  EXPECT_EQ(answer.tokens.size(), 8u);
  EXPECT_EQ(stand_in::use().graph_launches - before, 6 + 7);
}

// The first token's log-probability is the CPU's to a few units: the same model runs.
TEST(CudaEngineTest, LogProbabilitiesAreTheCpus) {
  const auto on_cuda = load_chat_model(1, "cuda"), on_cpu = load_chat_model(1, "cpu");
  GenerationRequest request = greedy(*on_cuda, "A bridge carries", 1);
  request.logprobs = true;
  Engine first(on_cuda, {}), second(on_cpu, {});
  const Answer a = run(first, request), b = run(second, request);
  ASSERT_EQ(a.tokens, b.tokens);
  EXPECT_NEAR(a.logprobs.at(0).logprob, b.logprobs.at(0).logprob, 1e-3);
}

// Requests as they may come right after a restart: refused for a while.
Answer run_patiently(Engine& engine, const GenerationRequest& request) {
  while (true) {
    try {
      return run(engine, request);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kUnavailable || engine.stats().condition == EngineCondition::kEnded) throw;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

struct Heard {
  std::mutex mutex;
  std::vector<std::string> lines;
  bool ended = false;
  DeviceLostListener listener() {
    return [this](const std::string& line, bool last) {
      const std::lock_guard lock(mutex);
      lines.push_back(line);
      ended |= last;
    };
  }
};

TEST(CudaEngineTest, ALostDeviceEndsWhatRunsAndIsHadAgain) {
  const auto model = load_chat_model(1, "cuda", testing::chat_adapters());
  Heard heard;
  EngineOptions options;
  options.on_device_lost = heard.listener();
  Engine engine(model, options);
  GenerationRequest later = greedy(*model, "later", 4);
  const Answer before = run(engine, later);
  later.adapter = "two";
  const Answer adapted = run(engine, later);
  EXPECT_NE(adapted.tokens, before.tokens);
  // The first one holds the engine at its first token until the second one is there.
  std::promise<void> both;
  Pending one(engine, greedy(*model, "A bridge", 8), [until = both.get_future().share()] { until.wait(); });
  Pending two(engine, greedy(*model, "x", 8));
  one.wait_for_tokens(1);
  stand_in::fail_call("kernel", 10, cudaErrorIllegalAddress);
  both.set_value();
  for (Pending* each : {&one, &two}) {
    const Answer answer = each->wait();
    EXPECT_EQ(answer.last.finish, FinishReason::kError);
    EXPECT_THAT(answer.last.error, HasSubstr("an illegal memory access was encountered"));
    EXPECT_EQ(answer.last.error_kind, ErrorKind::kDeviceLost);
    EXPECT_EQ(answer.last_events, 1);
  }
  EXPECT_EQ(run_patiently(engine, later).tokens, adapted.tokens);
  later.adapter.clear();
  EXPECT_EQ(run(engine, later).tokens, before.tokens);
  EXPECT_EQ(stand_in::use().resets, 1);
  EXPECT_EQ(engine.stats().device_restarts, 1);
  EXPECT_EQ(heard.lines.size(), 2u);
  EXPECT_THAT(heard.lines.at(0), HasSubstr("2 requests ended with an error. Loading the model again"));
}

// The fourth loss in a row is one too many.
TEST(CudaEngineTest, ADeviceThatIsLostAgainAndAgainIsGivenUp) {
  const auto model = load_chat_model(1, "cuda");
  Heard heard;
  EngineOptions options;
  options.on_device_lost = heard.listener();
  Engine engine(model, options);
  const GenerationRequest request = greedy(*model, "A bridge", 4);
  // An answer comes before what follows a loss.
  const auto wait = [&] {
    while (engine.stats().condition == EngineCondition::kRestarting) std::this_thread::yield();
  };
  for (int loss = 0; loss < 4; ++loss) {
    wait();
    EXPECT_FALSE(heard.ended) << loss;
    stand_in::fail_call("kernel", 10, cudaErrorLaunchFailure);
    EXPECT_EQ(run(engine, request).last.error_kind, ErrorKind::kDeviceLost);
  }
  wait();
  engine.drain();
  EXPECT_EQ(engine.save_cache(), "");
  EXPECT_TRUE(heard.ended);
  EXPECT_THAT(heard.lines.back(), HasSubstr("giving up"));
  EXPECT_THROW(run(engine, request), Error);
  EXPECT_EQ(engine.stats().condition, EngineCondition::kEnded);
}

// Whatever call fails for lack of memory, and whenever, each request ends with the right answer or with an
// error, and the next one is right.
TEST(CudaEngineTest, MemoryThatRunsOutLosesNothingThatFitsInParts) {
  const auto model = load_chat_model(1, "cuda");
  const auto requests = some_requests(*model);
  std::vector<Answer> expected;
  {
    Engine engine(model, {});
    for (const GenerationRequest& request : requests) expected.push_back(run(engine, request));
  }
  int wrong = 0, right = 0;
  for (const char* function : {"cudaMallocFromPoolAsync", "cudaLaunchKernel", "cudaGraphInstantiate",
                               "cudaGraphLaunch", "cudaMallocHost", "cudaMemcpyAsync"}) {
    for (const int64_t n : {1, 2, 30}) {
      Engine engine(model, {});
      stand_in::fail_call(function, n, cudaErrorMemoryAllocation);
      std::vector<std::unique_ptr<Pending>> pending;
      for (const GenerationRequest& request : requests)
        pending.push_back(std::make_unique<Pending>(engine, request));
      for (size_t i = 0; i < requests.size(); ++i) {
        const Answer answer = pending[i]->wait();
        const bool failed = answer.last.finish == FinishReason::kError;
        if (!failed) {
          EXPECT_EQ(answer.tokens, expected[i].tokens) << function << " " << n << " request " << i;
        }
        ++(failed ? wrong : right);
      }
      EXPECT_EQ(run(engine, requests[1]).tokens, expected[1].tokens) << function << " " << n;
      EXPECT_EQ(engine.stats().condition, EngineCondition::kServing);
    }
  }
  EXPECT_EQ(wrong, 0) << "of " << right + wrong;
}

// With penalties a draw is given when the pass before it is: where it finds no memory then, that step has not
// been, and is given again.
TEST(CudaEngineTest, AStepWhoseDrawFindsNoMemoryIsTakenBack) {
  const auto model = load_chat_model(1, "cuda");
  const GenerationRequest request = some_requests(*model)[1];
  std::vector<TokenId> expected;
  int64_t ahead = 0;
  const auto answer = [&](int64_t n) {
    Engine engine(model, {});
    if (n > 0) stand_in::fail_call("cudaMemcpyAsync", n, cudaErrorMemoryAllocation);
    const Answer got = run(engine, request);
    engine.drain();
    const EngineStats stats = engine.stats();
    if (n == 0) expected = got.tokens, ahead = stats.ahead_steps;
    EXPECT_EQ(got.tokens, expected) << n;
    EXPECT_EQ(stats.pages.used, 0) << n;
    return stats.ahead_steps < ahead;
  };
  EXPECT_FALSE(answer(0));
  EXPECT_EQ(ahead, 7);
  int taken_back = 0;
  for (int64_t n = 1; n <= 24; ++n) taken_back += answer(n) ? 1 : 0;
  EXPECT_GT(taken_back, 5);
}

// The same with prompts in the steps, in chunks, while others decode.
TEST(CudaEngineTest, StepsWithPromptsRunAheadAndAreTakenBack) {
  const auto model = load_chat_model(1, "cuda");
  const auto requests = some_requests(*model);
  std::vector<Answer> expected;
  int waited = 0;
  for (int64_t n = 0; n <= 12; ++n) {
    Engine engine(model, {.slots = 3, .page_tokens = 4, .batch_tokens = 6});
    std::promise<void> all_there;
    std::vector<std::unique_ptr<Pending>> pending;
    for (const GenerationRequest& request : requests) {
      std::function<void()> hold;
      if (pending.empty()) hold = [there = all_there.get_future().share()] { there.wait(); };
      pending.push_back(std::make_unique<Pending>(engine, request, hold));
    }
    pending.front()->wait_for_tokens(1);
    if (n > 0) stand_in::fail_call("cudaMemcpyAsync", 7 * n, cudaErrorMemoryAllocation);
    all_there.set_value();
    std::vector<Answer> answers;
    for (const auto& each : pending) answers.push_back(each->wait());
    engine.drain();
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.pages.used, 0) << n;
    if (n == 0) {
      expected = answers;
      EXPECT_EQ(stats.ahead_steps, stats.steps - 1);
    }
    waited += stats.ahead_steps < stats.steps - 1 ? 1 : 0;
    for (size_t i = 0; i < answers.size(); ++i) {
      EXPECT_EQ(answers[i].tokens, expected[i].tokens) << n << ", request " << i;
      for (size_t t = 0; t < expected[i].logprobs.size(); ++t)
        EXPECT_EQ(answers[i].logprobs.at(t).logprob, expected[i].logprobs[t].logprob)
            << n << ", request " << i;
    }
  }
  EXPECT_GT(waited, 5);
}

}  // namespace
}  // namespace qiao
