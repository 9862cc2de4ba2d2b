// The engine on the CUDA chip: the same bytes alone and in company, and what becomes of requests where memory
// or the device fails in mid-run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

// Seven steps of decoding after the first token: called once, then one launch each.
TEST(CudaEngineTest, DecodingIsOneLaunchAStep) {
  const auto model = load_chat_model(1, "cuda");
  Engine engine(model, {});
  const int before = stand_in::use().graph_launches;
  const Answer answer = run(engine, greedy(*model, "A bridge", 8));
  EXPECT_EQ(answer.tokens.size(), 8u);
  EXPECT_EQ(stand_in::use().graph_launches - before, 6);
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

TEST(CudaEngineTest, RequestsOfALostDeviceEndWithAnErrorAndSoDoLaterOnes) {
  const auto model = load_chat_model(1, "cuda");
  Engine engine(model, {});
  EXPECT_EQ(run(engine, greedy(*model, "A bridge", 2)).last.finish, FinishReason::kLength);
  stand_in::fail_call("kernel", 40, cudaErrorIllegalAddress);
  Pending one(engine, greedy(*model, "A bridge", 8)), two(engine, greedy(*model, "x", 8));
  for (Pending* each : {&one, &two}) {
    const Answer answer = each->wait();
    EXPECT_EQ(answer.last.finish, FinishReason::kError);
    EXPECT_THAT(answer.last.error, HasSubstr("an illegal memory access was encountered"));
    EXPECT_EQ(answer.last_events, 1);
  }
  EXPECT_EQ(run(engine, greedy(*model, "later", 2)).last.finish, FinishReason::kError);
}

}  // namespace
}  // namespace qiao
