// Answers under a grammar: what is drawn, what is forced, and how they end.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "constrain/structure.h"
#include "infer/engine_harness.h"

namespace qiao::testing {
namespace {

using constrain::CompiledGrammar;
using constrain::ConstraintState;
using constrain::JsonStyle;
using constrain::Structure;

constexpr const char* kPerson =
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":8},"age":{"type":"integer","minimum":0,"maximum":150},
        "bridge":{"enum":["blue light","red"]}},"required":["name","age","bridge"],"additionalProperties":false})";

std::shared_ptr<CompiledGrammar> person() {
  return constrain::compile_json_schema(parse_json(kPerson, "schema"), "schema", JsonStyle::generation());
}

bool complete(const std::shared_ptr<CompiledGrammar>& grammar, std::string_view text) {
  ConstraintState state(grammar);
  return state.accept_bytes(text) == text.size() && state.can_end();
}

class ConstrainedTest : public ::testing::Test {
 protected:
  GenerationRequest asked(std::shared_ptr<CompiledGrammar> grammar, int64_t max_tokens = 120) {
    GenerationRequest request = greedy(*model_, "The light of the bridge: ", max_tokens);
    request.ignore_eos = false;
    request.grammar = std::move(grammar);
    return request;
  }
  static std::shared_ptr<CompiledGrammar> only(const std::string& text) {
    return constrain::compile_choice({text}, "choice");
  }

  std::shared_ptr<LanguageModel> model_ = load_chat_model();
  Engine engine_{model_, {.context = 256, .slots = 4, .page_tokens = 16}};
};

TEST_F(ConstrainedTest, WhatEndsWithStopIsComplete) {
  const auto grammars = {person(), constrain::compile_regex("[a-c]+(-[0-9]{2}){1,3}", "regex"),
                         constrain::compile_grammar("root ::= \"(\" [xy]* root? \")\"", "grammar")};
  int stopped = 0;
  for (const auto& grammar : grammars) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      GenerationRequest request = asked(grammar);
      request.sampling = {.temperature = 1.5f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f, .seed = seed};
      const Answer answer = run(engine_, request);
      ASSERT_NE(answer.last.finish, FinishReason::kError) << answer.last.error;
      if (answer.last.finish == FinishReason::kStop) {
        EXPECT_TRUE(complete(grammar, answer.text)) << answer.text;
        EXPECT_EQ(answer.text, model_->tokenizer().decode(answer.tokens));
        ++stopped;
      }
    }
  }
  EXPECT_GT(stopped, 12);
}

TEST_F(ConstrainedTest, AnEndIsDrawnOnlyWhereTheTextIsComplete) {
  GenerationRequest request = asked(constrain::compile_regex("[ab]{5}c?", "regex"));
  request.sampling.logit_bias = {{2, 100.0f}};  // <|im_end|>
  const Answer answer = run(engine_, request);
  EXPECT_EQ(answer.last.finish, FinishReason::kStop);
  EXPECT_EQ(answer.text.size(), 5u);
}

TEST_F(ConstrainedTest, WhatIsForcedIsNotDrawn) {
  const std::string text = "the bridge carries 100 lights";
  const Answer answer = run(engine_, asked(only(text)));
  EXPECT_EQ(answer.text, text);
  EXPECT_EQ(answer.tokens, model_->tokenizer().encode(text));
  EXPECT_EQ(answer.last.finish, FinishReason::kStop);
  EXPECT_EQ(answer.last.completion_tokens, static_cast<int64_t>(answer.tokens.size()));
  EXPECT_EQ(answer.last.forced_tokens, answer.last.completion_tokens);
  EXPECT_EQ(engine_.stats().steps, 0);  // nothing was left to compute
}

TEST_F(ConstrainedTest, ForcedRunsAreOneChunk) {
  const Answer answer = run(engine_, asked(person()));
  ASSERT_EQ(answer.last.finish, FinishReason::kStop) << answer.text;
  EXPECT_GT(answer.last.forced_tokens, 15);
  EXPECT_LE(engine_.stats().steps, answer.last.completion_tokens - answer.last.forced_tokens + 1);
  EXPECT_EQ(engine_.stats().forced_tokens, answer.last.forced_tokens);
}

TEST_F(ConstrainedTest, LogprobsOfForcedTokensAreThoseOfThePrompt) {
  for (const auto& grammar : {person(), only("blue light on the bridge")}) {
    GenerationRequest request = asked(grammar);
    request.logprobs = true;
    request.top_logprobs = 3;
    const Answer made = run(engine_, request);
    ASSERT_EQ(made.last.finish, FinishReason::kStop);
    ASSERT_EQ(made.logprobs.size(), made.tokens.size());
    GenerationRequest again = request;
    again.grammar.reset();
    again.logprobs = false;
    again.max_tokens = 0;
    again.prompt_logprobs = true;
    again.prompt.insert(again.prompt.end(), made.tokens.begin(), made.tokens.end());
    const Answer read = run(engine_, again);
    const size_t offset = request.prompt.size() - 1;
    ASSERT_EQ(read.prompt_logprobs.size(), offset + made.tokens.size());
    for (size_t i = 0; i < made.tokens.size(); ++i) {
      EXPECT_EQ(made.logprobs[i].logprob, read.prompt_logprobs[offset + i].logprob) << "token " << i;
      EXPECT_EQ(made.logprobs[i].top, read.prompt_logprobs[offset + i].top) << "token " << i;
    }
    // With those of the prompt asked too, both come.
    request.prompt_logprobs = true;
    const Answer both = run(engine_, request);
    EXPECT_EQ(both.tokens, made.tokens);
    EXPECT_EQ(both.logprobs.size(), both.tokens.size());
    EXPECT_EQ(both.prompt_logprobs.size(), request.prompt.size() - 1);
  }
}

TEST_F(ConstrainedTest, LimitsHoldInForcedRuns) {
  const std::string text = "the bridge carries 100 lights";
  const std::vector<TokenId> tokens = model_->tokenizer().encode(text);
  for (const bool logprobs : {false, true}) {
    GenerationRequest request = asked(only(text), 3);
    request.logprobs = logprobs;
    Answer answer = run(engine_, request);
    EXPECT_EQ(answer.tokens, std::vector<TokenId>(tokens.begin(), tokens.begin() + 3));
    EXPECT_EQ(answer.last.finish, FinishReason::kLength);
    EXPECT_EQ(answer.last.completion_tokens, 3);
    EXPECT_EQ(answer.last.forced_tokens, 3);
    request.max_tokens = 100;
    request.stop = {"ries 1"};
    answer = run(engine_, request);
    EXPECT_EQ(answer.text, "the bridge car");
    EXPECT_EQ(answer.last.finish, FinishReason::kStop);
    EXPECT_EQ(answer.last.stop_text, "ries 1");
    EXPECT_EQ(answer.last.completion_tokens, static_cast<int64_t>(answer.tokens.size()));
    EXPECT_LT(answer.tokens.size(), tokens.size());
  }
  // The context is full before the text is.
  GenerationRequest request = asked(constrain::compile_regex("(a bridge ){1000}", "regex"), -1);
  const Answer answer = run(engine_, request);
  EXPECT_EQ(answer.last.finish, FinishReason::kLength);
  EXPECT_EQ(request.prompt.size() + answer.tokens.size(), 256u);
}

TEST_F(ConstrainedTest, IgnoredEndsAreNotDrawn) {
  GenerationRequest request = asked(constrain::compile_regex("(ab?)*", "regex"), 40);
  request.sampling.logit_bias = {{2, 100.0f}};
  request.ignore_eos = true;
  Answer answer = run(engine_, request);
  EXPECT_EQ(answer.last.finish, FinishReason::kLength);
  EXPECT_EQ(answer.tokens.size(), 40u);
  request.grammar = constrain::compile_regex("[ab]{7}", "regex");
  answer = run(engine_, request);
  EXPECT_EQ(answer.last.finish, FinishReason::kStop);  // nothing can follow
  EXPECT_EQ(answer.text.size(), 7u);
}

TEST_F(ConstrainedTest, AGrammarAtItsLimitEndsItsOwnRequest) {
  constrain::ConstraintLimits limits;
  limits.machine.max_states = 60;
  GenerationRequest request = asked(constrain::compile_regex("[a-f]{200}", "regex", limits), 200);
  request.sampling = {.temperature = 1.5f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f, .seed = 3};
  request.ignore_eos = true;
  Pending small(engine_, request), neighbour(engine_, asked(person()));
  const Answer failed = small.wait();
  EXPECT_EQ(failed.last.finish, FinishReason::kError);
  EXPECT_NE(failed.last.error.find("states"), std::string::npos) << failed.last.error;
  EXPECT_EQ(neighbour.wait().last.finish, FinishReason::kStop);
}

TEST_F(ConstrainedTest, ControlTokensShowAsTextWhereAsked) {
  const auto grammar = constrain::compile_structure(
      Structure::sequence({Structure::literal("call "), Structure::token("<|im_start|>"),
                           Structure::json(parse_json(R"({"const":{"a":"b"}})", "schema"))}),
      "tools");
  GenerationRequest request = asked(grammar);
  request.special_text = true;
  Answer answer = run(engine_, request);
  EXPECT_EQ(answer.text, "call <|im_start|>{\"a\": \"b\"}");
  EXPECT_EQ(std::count(answer.tokens.begin(), answer.tokens.end(), 1), 1);
  request.special_text = false;
  answer = run(engine_, request);
  EXPECT_EQ(answer.text, "call {\"a\": \"b\"}");
  // Not those at which generation ends.
  request = greedy(*model_, "The light", 5);
  request.special_text = true;
  request.sampling.logit_bias = {{2, 1000.0f}};
  EXPECT_EQ(run(engine_, request).text, "");
}

TEST_F(ConstrainedTest, ChoicesOfOneRequestDrawByThemselves) {
  const auto grammar = constrain::compile_regex("[a-z]{12}", "regex");
  std::set<std::string> texts;
  for (int32_t choice = 0; choice < 4; ++choice) {
    GenerationRequest request = asked(grammar);
    request.choice = choice;
    request.sampling = {.temperature = 1.5f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f, .seed = 9};
    texts.insert(run(engine_, request).text);
  }
  EXPECT_GT(texts.size(), 1u);
}

}  // namespace
}  // namespace qiao::testing
