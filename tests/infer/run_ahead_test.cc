// Steps that are given to the chip before the tokens of the last one are known: no answer changes by them,
// and what turns out to be superfluous is dropped.
#include <gtest/gtest.h>

#include <array>
#include <random>

#include "constrain/structure.h"
#include "infer/engine_harness.h"
#include "infer/made_model.h"

namespace qiao::testing {
namespace {

// The token that ends an answer, if the model has one that can be drawn.
TokenId end_of(const LanguageModel& model) {
  for (TokenId id = 0; id < model.config().vocabulary_size; ++id)
    if (model.ends_generation(id)) return id;
  return -1;
}

// Answers that end in every way: by the end token, a stop text, their length or the context's. Some have
// penalties or a grammar, whose draws wait for the token before; some grammars force tokens.
std::vector<GenerationRequest> mixed(const LanguageModel& model, std::mt19937_64& random, size_t count) {
  std::vector<GenerationRequest> list;
  const TokenId end = end_of(model);
  for (size_t i = 0; i < count; ++i) {
    GenerationRequest request;
    const size_t length = 1 + random() % 40;
    for (size_t t = 0; t < length; ++t) request.prompt.push_back(static_cast<TokenId>(3 + random() % 300));
    if (random() % 3 == 0 && !list.empty()) request.prompt = list.back().prompt;
    request.max_tokens = random() % 5 == 0 ? -1 : static_cast<int64_t>(random() % 40);
    request.sampling.temperature = random() % 3 == 0 ? 0.0f : 1.1f;
    request.sampling.seed = random();
    if (end >= 0) request.sampling.logit_bias = {{end, 3.0f}};
    request.logprobs = random() % 2 == 0;
    request.top_logprobs = static_cast<int32_t>(random() % 4);
    request.prompt_logprobs = random() % 6 == 0;
    if (random() % 4 == 0) request.stop = {"e", "th"};
    if (random() % 6 == 0) request.sampling.frequency_penalty = 0.5f;
    const char* const grammars[] = {"([a-z]+ )*", "(one|two|three hundred) bridges?( over the [a-z]+)*",
                                    "[a-z]{2,9}"};
    if (random() % 5 == 0) request.grammar = constrain::compile_regex(grammars[random() % 3], "regex");
    list.push_back(std::move(request));
  }
  return list;
}

void expect_equal(const Answer& got, const Answer& wanted, const std::string& where) {
  EXPECT_EQ(got.tokens, wanted.tokens) << where;
  EXPECT_EQ(got.text, wanted.text) << where;
  EXPECT_EQ(got.last.finish, wanted.last.finish) << where;
  EXPECT_EQ(got.last.stop_text, wanted.last.stop_text) << where;
  EXPECT_EQ(got.last.completion_tokens, wanted.last.completion_tokens) << where;
  EXPECT_EQ(got.last.forced_tokens, wanted.last.forced_tokens) << where;
  ASSERT_EQ(got.logprobs.size(), wanted.logprobs.size()) << where;
  for (size_t i = 0; i < got.logprobs.size(); ++i) {
    EXPECT_EQ(got.logprobs[i].logprob, wanted.logprobs[i].logprob) << where;
    EXPECT_EQ(got.logprobs[i].top, wanted.logprobs[i].top) << where;
  }
}

TEST(RunAheadTest, NoAnswerChanges) {
  constexpr uint64_t kSeed = 20261126;
  std::mt19937_64 random(kSeed);
  const std::array<std::shared_ptr<LanguageModel>, 3> models = {
      load_chat_model(), make_model({.layers = 2, .window = 21}),
      make_model({.layers = 2, .window = 13, .all_slide = true})};
  int64_t ahead = 0, steps = 0, preemptions = 0;
  for (int round = 0; round < 30; ++round) {
    const auto& model = models[static_cast<size_t>(round) % models.size()];
    const std::vector<GenerationRequest> list = mixed(*model, random, 12);
    EngineOptions options;
    options.context = 96;
    options.slots = static_cast<int64_t>(1 + random() % 12);
    options.page_tokens = std::array{int64_t{1}, int64_t{7}, int64_t{16}, int64_t{32}}[random() % 4];
    options.pages = (96 + options.page_tokens - 1) / options.page_tokens * (random() % 2 == 0 ? 1 : 4);
    options.sliding_pages = random() % 2 == 0 ? 1 : 0;
    options.batch_tokens = static_cast<int64_t>(1 + random() % 64);
    options.prefix_cache = random() % 3 != 0;
    options.run_ahead = false;
    std::vector<Answer> wanted;
    {
      Engine engine(model, options);
      for (const GenerationRequest& request : list) wanted.push_back(run(engine, request));
    }
    options.run_ahead = true;
    Engine engine(model, options);
    RandomRequests(engine, list, random).wait([&](size_t i, const Answer& answer) {
      expect_equal(answer, wanted[i], fmt::format("round {}, request {}", round, i));
    });
    engine.drain();
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.pages.used + stats.sliding_pages.used, 0) << round;
    ahead += stats.ahead_steps;
    steps += stats.steps;
    preemptions += stats.preemptions;
  }
  EXPECT_GT(ahead, steps / 10);
  EXPECT_GT(preemptions, 0);
}

// Every step of decoding but the first follows one under way; none is computed beyond a known length.
TEST(RunAheadTest, DecodingRunsAheadAndNoFurtherThanTheLength) {
  const auto model = load_chat_model();
  Engine engine(model, {.run_ahead = true});
  EXPECT_EQ(run(engine, greedy(*model, "A bridge", 8)).tokens.size(), 8u);
  engine.drain();
  EXPECT_EQ(engine.stats().steps, 8);
  EXPECT_EQ(engine.stats().ahead_steps, 7);
}

// Where a draw follows from the token that is awaited, the forward pass before it is given all the same.
TEST(RunAheadTest, PenaltiesAndGrammarsRunAhead) {
  const auto model = load_chat_model();
  Engine engine(model, {.run_ahead = true});
  GenerationRequest penalty = greedy(*model, "A bridge", 8), grammar = penalty;
  penalty.sampling.frequency_penalty = 0.5f;
  grammar.grammar = constrain::compile_regex("[a-z ]*", "regex");
  run(engine, penalty);
  run(engine, grammar);
  engine.drain();
  EXPECT_EQ(engine.stats().ahead_steps, 14);
}

// A token that a grammar forces is not drawn, and its log-probability is that of the pass already given.
TEST(RunAheadTest, ForcedTokensComeBehindAPassThatWasGiven) {
  const auto model = load_chat_model();
  GenerationRequest request = greedy(*model, "A bridge", 40);
  request.grammar = constrain::compile_regex("[ab] is a bridge( [cd] is a tower)", "regex");
  request.logprobs = true;
  Answer answers[2];
  for (const bool ahead : {false, true}) {
    Engine engine(model, {.run_ahead = ahead});
    answers[ahead] = run(engine, request);
    engine.drain();
    EXPECT_GT(answers[ahead].last.forced_tokens, 0);
    EXPECT_EQ(engine.stats().ahead_steps > 0, ahead);
  }
  expect_equal(answers[1], answers[0], "ahead");
}

}  // namespace
}  // namespace qiao::testing
