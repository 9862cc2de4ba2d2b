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
// penalties or a grammar, whose draws wait for the token before; some grammars force tokens. Prompts of up to
// 80 tokens, some of which begin alike; some want log-probabilities of theirs or hidden states.
std::vector<GenerationRequest> mixed(const LanguageModel& model, std::mt19937_64& random, size_t count) {
  std::vector<GenerationRequest> list;
  const TokenId end = end_of(model);
  for (size_t i = 0; i < count; ++i) {
    GenerationRequest request;
    if (random() % 3 == 0 && !list.empty()) request.prompt = list.back().prompt;
    if (request.prompt.size() > 40) request.prompt.resize(1 + random() % 40);
    const size_t more = 1 + random() % 40;
    for (size_t t = 0; t < more; ++t) request.prompt.push_back(static_cast<TokenId>(3 + random() % 300));
    request.max_tokens = random() % 5 == 0 ? -1 : static_cast<int64_t>(random() % 40);
    request.sampling.temperature = random() % 3 == 0 ? 0.0f : 1.1f;
    request.sampling.seed = random();
    if (end >= 0) request.sampling.logit_bias = {{end, 3.0f}};
    request.logprobs = random() % 2 == 0;
    request.top_logprobs = static_cast<int32_t>(random() % 4);
    request.prompt_logprobs = random() % 6 == 0;
    if (random() % 2 == 0)
      request.prompt_logprobs_from = 1 + static_cast<int64_t>(random() % request.prompt.size());
    request.embedding = random() % 8 == 0;
    request.tenant = random() % 5 == 0 ? "other" : "";
    if (!model.adapters().empty() && random() % 2 == 0)
      request.adapter = model.adapters()[random() % model.adapters().size()].name;
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
  EXPECT_EQ(got.last.embedding, wanted.last.embedding) << where;
  for (const auto list : {&Answer::logprobs, &Answer::prompt_logprobs}) {
    const std::vector<TokenLogprobs>&a = got.*list, &b = wanted.*list;
    ASSERT_EQ(a.size(), b.size()) << where;
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].logprob, b[i].logprob) << where;
      EXPECT_EQ(a[i].top, b[i].top) << where;
    }
  }
}

TEST(RunAheadTest, NoAnswerChanges) {
  constexpr uint64_t kSeed = 20261126;
  std::mt19937_64 random(kSeed);
  const std::array<std::shared_ptr<LanguageModel>, 3> models = {
      load_chat_model(1, "cpu", chat_adapters()), make_model({.layers = 2, .window = 21}),
      make_model({.layers = 2, .window = 13, .all_slide = true})};
  int64_t ahead = 0, steps = 0, preemptions = 0, hits = 0;
  for (int round = 0; round < 45; ++round) {
    const auto& model = models[static_cast<size_t>(round) % models.size()];
    const std::vector<GenerationRequest> list = mixed(*model, random, 12);
    EngineOptions options;
    options.context = 96;
    options.slots = static_cast<int64_t>(1 + random() % 12);
    options.page_tokens = std::array{int64_t{1}, int64_t{7}, int64_t{16}, int64_t{32}}[random() % 4];
    options.pages = (96 + options.page_tokens - 1) / options.page_tokens * (random() % 2 == 0 ? 1 : 4);
    options.prompt_logprob_rows = static_cast<int64_t>(1 + random() % 32);
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
    hits += stats.prefix_hits;
  }
  EXPECT_GT(ahead, steps / 2);
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(hits, 0);
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

// Requests that come as others end: while any goes on, the next step is given before the last one has ended,
// chunks of their prompts with it. Only a first step follows none.
TEST(RunAheadTest, StepsWithPromptsRunAhead) {
  const auto model = load_chat_model();
  EngineOptions options;
  options.slots = 4;
  options.batch_tokens = 16;
  options.context = 160;
  options.run_ahead = true;
  Engine engine(model, options);
  std::promise<void> all_there;
  std::vector<std::unique_ptr<Pending>> pending;
  const std::string text = "A bridge carries people over a river; this one carries words.";
  for (size_t i = 0; i < 24; ++i) {
    std::function<void()> hold;
    if (i == 0) hold = [there = all_there.get_future().share()] { there.wait(); };
    GenerationRequest request = greedy(*model, text.substr(i), 5 + static_cast<int64_t>(i * 7 % 11));
    request.prompt_logprobs = i % 5 == 0;
    if (i % 4 == 1) request.sampling.frequency_penalty = 0.5f;
    if (i % 4 == 2) request.grammar = constrain::compile_regex("[a-z ]*", "regex");
    pending.push_back(std::make_unique<Pending>(engine, std::move(request), hold));
  }
  all_there.set_value();
  for (const auto& each : pending) EXPECT_EQ(each->wait().last.finish, FinishReason::kLength);
  engine.drain();
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.ahead_steps, stats.steps - 1) << "of " << stats.steps;
  EXPECT_GT(stats.prefill_seconds, 0);
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
