// A draft model changes how soon tokens come, and nothing else.
#include "infer/draft_model.h"

#include <gtest/gtest.h>

#include "constrain/constraint.h"
#include "infer/engine_harness.h"
#include "infer/made_model.h"
#include "support/expect_error.h"

namespace qiao::testing {
namespace {

class DraftModelTest : public ::testing::Test {
 protected:
  // Four layers deep and one that shares its weights' beginnings: cheap, and often right.
  const std::shared_ptr<LanguageModel> target_ = make_model({.layers = 4});
  const std::shared_ptr<LanguageModel> close_ = make_model({.layers = 4, .noise = 0.02f});
  const std::shared_ptr<LanguageModel> far_ = make_model({.layers = 1, .seed = 77});

  std::vector<GenerationRequest> requests(float temperature) const {
    std::vector<GenerationRequest> list;
    for (int i = 0; i < 6; ++i) {
      GenerationRequest request =
          greedy(*target_, "A bridge carries people over " + std::to_string(i * 37), 60);
      request.sampling.temperature = temperature;
      request.sampling.seed = static_cast<uint64_t>(i) * 7919;
      request.sampling.frequency_penalty = i % 2 == 0 ? 0.4f : 0.0f;
      request.sampling.repetition_penalty = i % 3 == 0 ? 1.2f : 1.0f;
      request.choice = i % 2;
      request.logprobs = true;
      if (i == 3) request.stop = {"e", "a"};
      if (i == 4) request.ignore_eos = false;
      if (i == 5) request.sampling.logit_bias = {{70, 2.0f}, {319, 1.0f}};
      list.push_back(std::move(request));
    }
    return list;
  }
};

void expect_equal(const Answer& got, const Answer& expected) {
  EXPECT_EQ(got.tokens, expected.tokens);
  EXPECT_EQ(got.text, expected.text);
  EXPECT_EQ(got.last.finish, expected.last.finish);
  EXPECT_EQ(got.last.stop_text, expected.last.stop_text);
  ASSERT_EQ(got.logprobs.size(), expected.logprobs.size());
  for (size_t i = 0; i < got.logprobs.size(); ++i)
    EXPECT_EQ(got.logprobs[i].logprob, expected.logprobs[i].logprob);
}

TEST_F(DraftModelTest, AnswersAreTheSameBytesAtAnyTemperature) {
  for (const float temperature : {0.0f, 0.8f, 1.5f}) {
    SCOPED_TRACE(temperature);
    const std::vector<GenerationRequest> list = requests(temperature);
    std::vector<Answer> alone;
    {
      Engine engine(target_, {.context = 200, .slots = 1});
      for (const GenerationRequest& request : list) alone.push_back(run(engine, request));
    }
    for (const auto& draft : {close_, far_}) {
      for (const int64_t most : {int64_t{1}, int64_t{8}}) {
        Engine engine(target_, {.context = 200, .slots = 3, .draft = draft, .draft_max = most});
        std::vector<std::unique_ptr<Pending>> pending;
        for (const GenerationRequest& request : list)
          pending.push_back(std::make_unique<Pending>(engine, request));
        for (size_t i = 0; i < list.size(); ++i) {
          SCOPED_TRACE(i);
          expect_equal(pending[i]->wait(), alone[i]);
        }
        const EngineStats stats = engine.stats();
        EXPECT_GT(stats.drafted_tokens, 0);
        if (draft == close_) {
          EXPECT_GT(stats.accepted_tokens, 0);
        }
      }
    }
  }
}

// The draft knows no adapters: it guesses as the model without one would, and the answer is the adapter's.
TEST(DraftWithAdaptersTest, AnswersAreTheSameBytes) {
  const auto target = load_chat_model(1, "cpu", chat_adapters());
  const auto draft = load_chat_model();
  for (const float temperature : {0.0f, 1.0f}) {
    SCOPED_TRACE(temperature);
    std::vector<GenerationRequest> list;
    for (const char* adapter : {"", "one", "two", "one", ""}) {
      GenerationRequest request = greedy(*target, "A bridge carries people", 60);
      request.adapter = adapter;
      request.sampling.temperature = temperature;
      request.sampling.seed = 40 + list.size();
      request.logprobs = true;
      if (list.size() == 3) request.grammar = constrain::compile_regex("[a-z ,.]{20,50}", "regex");
      list.push_back(std::move(request));
    }
    std::vector<Answer> alone;
    for (const GenerationRequest& request : list) {
      Engine engine(target, {.context = 160, .slots = 1});
      alone.push_back(run(engine, request));
    }
    EXPECT_NE(alone[0].tokens, alone[1].tokens);
    EXPECT_NE(alone[1].tokens, alone[2].tokens);
    for (const int64_t slots : {1, 4}) {
      for (const int64_t page_tokens : {4, 16}) {
        SCOPED_TRACE(slots);
        SCOPED_TRACE(page_tokens);
        Engine engine(
            target,
            {.context = 160, .slots = slots, .page_tokens = page_tokens, .draft = draft, .draft_max = 4});
        for (int round = 0; round < 2; ++round) {  // then prompts come from the prefix cache
          std::vector<std::unique_ptr<Pending>> pending;
          for (const GenerationRequest& request : list)
            pending.push_back(std::make_unique<Pending>(engine, request));
          for (size_t i = 0; i < list.size(); ++i) {
            SCOPED_TRACE(i);
            expect_equal(pending[i]->wait(), alone[i]);
          }
        }
        EXPECT_GT(engine.stats().accepted_tokens, 0);
      }
    }
    for (size_t i = 1; i < 3; ++i) {  // through an adapter, too, the draft is asked
      SCOPED_TRACE(i);
      Engine engine(target, {.context = 160, .draft = draft, .draft_max = 4});
      expect_equal(run(engine, list[i]), alone[i]);
      EXPECT_GT(engine.stats().drafted_tokens, 0);
    }
  }
}

TEST_F(DraftModelTest, TheSameModelIsRightEveryTimeAndSavesSteps) {
  GenerationRequest request = greedy(*target_, "A bridge", 60);
  request.sampling.temperature = 1.0f;
  request.sampling.frequency_penalty = 0.5f;
  request.sampling.seed = 5;
  Engine engine(target_, {.context = 200, .draft = make_model({.layers = 4}), .draft_max = 4});
  (void)run(engine, request);
  engine.drain();
  const EngineStats stats = engine.stats();
  EXPECT_GT(stats.drafted_tokens, 0);
  EXPECT_EQ(stats.accepted_tokens, stats.drafted_tokens);  // it draws with the target's own numbers
  EXPECT_EQ(stats.steps, 60 - stats.accepted_tokens);
}

TEST_F(DraftModelTest, UnderAGrammarTheAnswersAreTheSameAndSoonerToo) {
  for (const char* regex : {"[a-z ]{40}", "([a-c]{3} and nothing else, ){4}", "[^a-zA-Z]{1,40}"}) {
    SCOPED_TRACE(regex);
    GenerationRequest request = greedy(*target_, "A bridge", 60);
    request.grammar = constrain::compile_regex(regex, "regex");
    request.sampling.temperature = 1.0f;
    request.sampling.seed = 11;
    request.logprobs = true;
    Engine plain(target_, {.context = 200});
    const Answer alone = run(plain, request);
    for (const auto& draft : {close_, far_}) {
      Engine engine(target_, {.context = 200, .draft = draft, .draft_max = 4});
      expect_equal(run(engine, request), alone);
    }
  }
  // All that may come next is what the model would say anyhow, so its double is right as without a grammar.
  GenerationRequest request = greedy(*target_, "A bridge", 60);
  request.grammar = constrain::compile_regex("[\\s\\S]*", "regex");
  request.ignore_eos = true;
  Engine engine(target_, {.context = 200, .draft = make_model({.layers = 4}), .draft_max = 4});
  (void)run(engine, request);
  EXPECT_GT(engine.stats().accepted_tokens, 0);
}

TEST_F(DraftModelTest, AStrangerIsSwitchedOff) {
  GenerationRequest request = greedy(*target_, "A bridge", 180);
  Engine engine(target_, {.context = 200, .draft = far_, .draft_max = 8});
  (void)run(engine, request);
  const EngineStats stats = engine.stats();
  EXPECT_GT(stats.drafts, 0);
  EXPECT_LT(stats.drafts, 60);
}

TEST_F(DraftModelTest, AnotherVocabularyIsRefusedByItsFirstDifference) {
  const TemporaryDirectory directory;
  write_model(directory, {.layers = 1});
  std::string tokenizer = read_file(directory.path() / "tokenizer.json", size_t{1} << 20);
  const auto replace = [&](const std::string& from, const std::string& to) {
    const size_t at = tokenizer.find(from);
    ASSERT_NE(at, std::string::npos);
    tokenizer.replace(at, from.size(), to);
  };
  replace("\"a\": 67", "\"a\": 68");  // "a" and "b" change places
  replace("\"b\": 68", "\"b\": 67");
  directory.write("tokenizer.json", tokenizer);
  const auto other = LanguageModel::load(directory.path(), {.device = "cpu", .threads = 1});
  const EngineOptions options = {.context = 100, .draft = other};
  EXPECT_QIAO_ERROR(Engine(target_, options), kInvalidInput, "its token 67 is \"b\", and \"a\" was expected");
}

TEST_F(DraftModelTest, ADraftThatLacksPaddedIdsIsNotAskedAboutThem) {
  const auto padded = make_model({.layers = 2, .vocabulary = 352});
  GenerationRequest request = greedy(*padded, "A bridge", 40);
  request.prompt.push_back(340);  // of no token, but an embedding
  Engine plain(padded, {.context = 100}), drafting(padded, {.context = 100, .draft = close_});
  expect_equal(run(drafting, request), run(plain, request));
  EXPECT_EQ(drafting.stats().drafted_tokens, 0);
}

}  // namespace
}  // namespace qiao::testing
