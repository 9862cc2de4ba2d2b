#include "infer/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <future>
#include <set>
#include <thread>

#include "infer/engine_harness.h"
#include "models/step_driver.h"
#include "support/expect_error.h"

namespace qiao::testing {
namespace {

constexpr const char* kPrompt = "The sky is blue because air scatters";

class EngineTest : public ::testing::Test {
 protected:
  std::shared_ptr<LanguageModel> model_ = load_chat_model();
  Engine engine_{model_, {.context = 256, .slots = 2, .page_tokens = 16}};
};

TEST_F(EngineTest, GreedyTokensAreTheDecodersLikeliest) {
  const Answer answer = run(engine_, greedy(*model_, kPrompt, 12));
  ASSERT_EQ(answer.tokens.size(), 12u);
  // Teacher forcing on the decoder itself, in one piece.
  std::vector<TokenId> all = model_->tokenizer().encode(kPrompt);
  const size_t prompt = all.size();
  all.insert(all.end(), answer.tokens.begin(), answer.tokens.end());
  StepDriver driver(model_->decoder(), static_cast<int64_t>(all.size()));
  const std::vector<float> logits = driver.feed_in_chunks(all, all.size());
  const auto vocabulary = static_cast<size_t>(model_->decoder().config().vocabulary_size);
  for (size_t i = prompt; i < all.size(); ++i) {
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>((i - 1) * vocabulary);
    const auto best = std::max_element(row, row + static_cast<std::ptrdiff_t>(vocabulary));
    // The driver caches keys and values in F32, the engine in F16: near ties may fall either way.
    EXPECT_LE(*best - row[all[i]], 0.02f * std::abs(*best)) << "token " << i - prompt;
  }
}

TEST_F(EngineTest, PromptLogprobsAreThoseOfTheGenerationThatMadeIt) {
  GenerationRequest request = greedy(*model_, kPrompt, 16);
  request.logprobs = true;
  const Answer made = run(engine_, request);
  GenerationRequest again = greedy(*model_, kPrompt, 0);
  again.prompt.insert(again.prompt.end(), made.tokens.begin(), made.tokens.end());
  again.prompt_logprobs = true;
  const Answer read = run(engine_, again);
  ASSERT_EQ(read.prompt_logprobs.size(), again.prompt.size() - 1);
  const size_t offset = request.prompt.size() - 1;
  for (size_t i = 0; i < made.tokens.size(); ++i) {
    EXPECT_EQ(made.logprobs[i].logprob, read.prompt_logprobs[offset + i].logprob)
        << "token " << i;  // the same bits
  }
  EXPECT_TRUE(read.tokens.empty());
  EXPECT_EQ(read.last.finish, FinishReason::kLength);
}

TEST_F(EngineTest, TopLogprobsDescendAndSumToAtMostOne) {
  GenerationRequest request = greedy(*model_, kPrompt, 4);
  request.logprobs = true;
  request.top_logprobs = 20;
  for (const TokenLogprobs& entry : run(engine_, request).logprobs) {
    ASSERT_EQ(entry.top.size(), 20u);
    double sum = 0;
    for (size_t i = 0; i < 20; ++i) {
      sum += std::exp(entry.top[i].second);
      if (i > 0) {
        EXPECT_LE(entry.top[i].second, entry.top[i - 1].second);
      }
    }
    EXPECT_LE(sum, 1.0 + 1e-5);
    EXPECT_EQ(entry.top[0].second, entry.logprob);  // greedy: the likeliest is the drawn one
  }
}

TEST_F(EngineTest, LogprobsAtTheSamplingTemperatureWhereAsked) {
  GenerationRequest request = greedy(*model_, kPrompt, 6);
  request.sampling = {.temperature = 0.6f, .top_k = 5, .top_p = 0.9f, .min_p = 0.0f, .seed = 7};
  request.logprobs = true;
  request.top_logprobs = 20;
  const Answer plain = run(engine_, request);
  request.logprobs_at_temperature = true;
  const Answer scaled = run(engine_, request);
  ASSERT_EQ(scaled.tokens, plain.tokens);  // what is drawn does not change
  for (size_t i = 0; i < plain.tokens.size(); ++i) {
    // Log-probabilities are logits up to a number that is the same for all of a row.
    const auto &before = plain.logprobs[i].top, &after = scaled.logprobs[i].top;
    for (size_t j = 1; j < before.size(); ++j) {
      EXPECT_EQ(after[j].first, before[j].first);
      EXPECT_NEAR(after[j].second - after[0].second, (before[j].second - before[0].second) / 0.6f, 1e-4);
    }
    EXPECT_NE(after[0].second, before[0].second);
  }
  // Of a prompt the same bits, at the same temperature.
  GenerationRequest again = request;
  again.prompt.insert(again.prompt.end(), scaled.tokens.begin(), scaled.tokens.end());
  again.max_tokens = 0;
  again.prompt_logprobs = true;
  const Answer read = run(engine_, again);
  for (size_t i = 0; i < scaled.tokens.size(); ++i) {
    EXPECT_EQ(read.prompt_logprobs[request.prompt.size() - 1 + i].logprob, scaled.logprobs[i].logprob);
  }
  request.sampling.temperature = 0;  // greedy: those of temperature 1
  const Answer greedy_scaled = run(engine_, request);
  request.logprobs_at_temperature = false;
  EXPECT_EQ(run(engine_, request).logprobs[0].logprob, greedy_scaled.logprobs[0].logprob);
}

TEST_F(EngineTest, GivesTheTokenThatEndsGenerationWhereAsked) {
  GenerationRequest request = greedy(*model_, kPrompt, 200);
  request.ignore_eos = false;
  request.logprobs = true;
  request.sampling = {.temperature = 3.0f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f};
  Answer without;
  while (without.last.finish != FinishReason::kStop) {  // two of 320 tokens end it
    ++request.sampling.seed;
    ASSERT_LT(request.sampling.seed, 50u);
    without = run(engine_, request);
  }
  request.end_token = true;
  const Answer with = run(engine_, request);
  ASSERT_EQ(with.tokens.size(), without.tokens.size() + 1);
  EXPECT_TRUE(std::equal(without.tokens.begin(), without.tokens.end(), with.tokens.begin()));
  EXPECT_TRUE(model_->ends_generation(with.tokens.back()));
  EXPECT_LT(with.logprobs.back().logprob, 0.0f);
  EXPECT_EQ(with.text, without.text);
  EXPECT_EQ(with.last.completion_tokens, without.last.completion_tokens);
}

TEST_F(EngineTest, ASeedGivesTheSameTokensAndAnotherSeedOthers) {
  GenerationRequest request = greedy(*model_, kPrompt, 32);
  request.sampling = {.temperature = 1.5f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f, .seed = 7};
  const std::vector<TokenId> first = run(engine_, request).tokens;
  EXPECT_EQ(run(engine_, request).tokens, first);
  request.sampling.seed = 8;
  EXPECT_NE(run(engine_, request).tokens, first);
  request.sampling.seed = 7;
  request.choice = 1;
  EXPECT_NE(run(engine_, request).tokens, first);
}

TEST_F(EngineTest, ALargeBiasDecidesTheToken) {
  GenerationRequest request = greedy(*model_, kPrompt, 5);
  request.sampling.logit_bias = {{65, 1000.0f}};
  EXPECT_EQ(run(engine_, request).tokens, std::vector<TokenId>(5, 65));
}

TEST_F(EngineTest, APresencePenaltyForbidsRepetition) {
  GenerationRequest request = greedy(*model_, kPrompt, 60);
  request.sampling.presence_penalty = 100.0f;
  const std::vector<TokenId> tokens = run(engine_, request).tokens;
  EXPECT_EQ(std::set<TokenId>(tokens.begin(), tokens.end()).size(), tokens.size());
}

TEST_F(EngineTest, StopsBeforeAStopStringAndSaysWhich) {
  const Answer whole = run(engine_, greedy(*model_, kPrompt, 24));
  ASSERT_GT(whole.text.size(), 12u);
  GenerationRequest request = greedy(*model_, kPrompt, 24);
  // A run of ASCII in the middle of what it says: its first place is where the answer must end.
  const std::string stop = whole.text.substr(whole.text.size() / 2, 3);
  request.stop = {stop};
  const Answer stopped = run(engine_, request);
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(stopped.last.finish, FinishReason::kStop);
  EXPECT_EQ(stopped.last.stop_text, stop);
  EXPECT_LT(stopped.tokens.size(), whole.tokens.size());
}

TEST_F(EngineTest, EndsAtAnEndTokenUnlessToldOtherwise) {
  GenerationRequest request = greedy(*model_, kPrompt, 8);
  request.sampling.logit_bias = {{2, 1000.0f}};  // <|im_end|>
  EXPECT_EQ(run(engine_, request).tokens.size(), 8u);
  request.ignore_eos = false;
  const Answer ended = run(engine_, request);
  EXPECT_TRUE(ended.tokens.empty());
  EXPECT_EQ(ended.last.finish, FinishReason::kStop);
  EXPECT_EQ(ended.last.completion_tokens, 1);
}

TEST_F(EngineTest, StopsWhereTheContextIsFull) {
  const Answer answer = run(engine_, greedy(*model_, kPrompt, -1));
  EXPECT_EQ(answer.last.finish, FinishReason::kLength);
  EXPECT_EQ(answer.last.prompt_tokens + answer.last.completion_tokens, 256);
}

TEST_F(EngineTest, TheSecondTurnOfAChatStartsFromTheCache) {
  const Answer first = run(engine_, greedy(*model_, kPrompt, 10));
  GenerationRequest request = greedy(*model_, kPrompt, 10);
  request.prompt.insert(request.prompt.end(), first.tokens.begin(), first.tokens.end());
  const size_t computed = request.prompt.size() - 1;  // the last token was drawn, not computed
  request.prompt.push_back(70);
  const Answer second = run(engine_, request);
  EXPECT_EQ(second.last.cached_tokens, static_cast<int64_t>(computed / 16 * 16));  // whole pages
  EXPECT_GE(second.last.cached_tokens, 16);
  EXPECT_EQ(engine_.stats().prefix_hits, second.last.cached_tokens);
  request.tenant = "another";
  const Answer apart = run(engine_, request);
  EXPECT_EQ(apart.last.cached_tokens, 0);
  EXPECT_EQ(apart.tokens, second.tokens);
}

TEST_F(EngineTest, AnEmbeddingIsTheMeanOfTheHiddenStates) {
  GenerationRequest request = greedy(*model_, kPrompt);
  request.embedding = true;
  const Answer answer = run(engine_, request);
  const int64_t width = model_->decoder().config().hidden_size;
  ASSERT_EQ(answer.last.embedding.size(), static_cast<size_t>(width));
  // The same by hand: every row's hidden state, without the engine.
  KvCache cache(model_->backend(), model_->decoder().config(), 4, 16, DType::kF16);
  const auto count = static_cast<int32_t>(request.prompt.size());
  const auto workspace = model_->decoder().make_workspace(
      {.tokens = count, .sequences = 1, .pages_per_sequence = 4, .outputs = count, .logits = 0}, cache);
  std::vector<int32_t> positions(request.prompt.size());
  std::iota(positions.begin(), positions.end(), 0);
  const int32_t table[] = {0, 1, 2, 3}, starts[] = {0, count};
  const Decoder::Outputs out =
      model_->decoder().forward({request.prompt, positions, positions, table, {&count, 1}, starts, positions},
                                cache, *workspace, false);
  std::vector<float> hidden(static_cast<size_t>(count * width));
  model_->backend().download(hidden.data(), out.hidden.data, hidden.size() * sizeof(float));
  for (int64_t c = 0; c < width; ++c) {
    double sum = 0;
    for (int32_t t = 0; t < count; ++t) sum += hidden[static_cast<size_t>(t * width + c)];
    EXPECT_FLOAT_EQ(answer.last.embedding[static_cast<size_t>(c)], static_cast<float>(sum / count));
  }
}

TEST_F(EngineTest, ACancelledRequestEndsOnceAndFreesItsSlot) {
  Engine engine(load_chat_model(), {.context = 65'536});
  {
    std::promise<void> asked;
    std::atomic<int> tokens = 0;
    Pending pending(engine, greedy(*model_, kPrompt, 60'000), [&tokens, until = asked.get_future().share()] {
      if (++tokens >= 3) until.wait();
    });
    pending.wait_for_tokens(3);
    pending.generation->cancel();
    asked.set_value();
    const Answer answer = pending.wait();
    EXPECT_EQ(answer.last.finish, FinishReason::kCancelled);
    EXPECT_LE(answer.tokens.size(), 4u);  // one may be under way
    EXPECT_EQ(answer.last_events, 1);
  }
  EXPECT_EQ(run(engine, greedy(*model_, kPrompt, 4)).tokens.size(), 4u);
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.cancelled, 1);
  EXPECT_EQ(stats.finished, 1);
}

TEST_F(EngineTest, DrainFinishesWhatWasTakenAndTakesNoMore) {
  Pending pending(engine_, greedy(*model_, kPrompt, 40));
  engine_.drain();
  EXPECT_EQ(pending.wait().tokens.size(), 40u);
  EXPECT_QIAO_ERROR(run(engine_, greedy(*model_, kPrompt)), kUnavailable, "shutting down");
}

TEST_F(EngineTest, RefusesRequestsThatCannotRun) {
  const auto refused = [&](const char* words, const std::function<void(GenerationRequest&)>& spoil) {
    GenerationRequest request = greedy(*model_, kPrompt);
    spoil(request);
    EXPECT_QIAO_ERROR(run(engine_, request), kInvalidInput, words);
  };
  refused("prompt: has no tokens", [](GenerationRequest& r) { r.prompt.clear(); });
  refused("prompt: token id 320", [](GenerationRequest& r) { r.prompt.push_back(320); });
  refused("prompt: token id -1", [](GenerationRequest& r) { r.prompt[0] = -1; });
  refused("prompt: 256 tokens do not fit", [](GenerationRequest& r) { r.prompt.assign(256, 65); });
  refused("temperature: -1", [](GenerationRequest& r) { r.sampling.temperature = -1; });
  refused("temperature: nan", [](GenerationRequest& r) { r.sampling.temperature = NAN; });
  refused("top_p: 1.5", [](GenerationRequest& r) { r.sampling.top_p = 1.5f; });
  refused("min_p: -0.5", [](GenerationRequest& r) { r.sampling.min_p = -0.5f; });
  refused("top_k: -1", [](GenerationRequest& r) { r.sampling.top_k = -1; });
  refused("repetition_penalty: 0", [](GenerationRequest& r) { r.sampling.repetition_penalty = 0; });
  refused("logit_bias: 320", [](GenerationRequest& r) { r.sampling.logit_bias = {{320, 1.0f}}; });
  refused("top_logprobs: 21", [](GenerationRequest& r) { r.top_logprobs = 21; });
}

TEST_F(EngineTest, AFullQueueIsAnErrorNotAWait) {
  Engine small(load_chat_model(), {.context = 2048, .slots = 1, .max_queued = 1});
  std::promise<void> refused;
  Pending running(small, greedy(*model_, kPrompt, 20),
                  [until = refused.get_future().share()] { until.wait(); });
  running.wait_for_tokens(1);
  Pending queued(small, greedy(*model_, kPrompt, 2));
  EXPECT_QIAO_ERROR(run(small, greedy(*model_, kPrompt, 2)), kUnavailable, "queue");
  refused.set_value();
  EXPECT_EQ(queued.wait().tokens.size(), 2u);
  running.wait();
}

TEST_F(EngineTest, RefusesACacheThatDoesNotFitInMemory) {
  EXPECT_QIAO_ERROR(Engine(model_, {.page_tokens = 4096, .pages = 1 << 18}), kTooLarge, "GiB", "--kv-pages");
  EXPECT_QIAO_ERROR(Engine(model_, {.context = 1 << 30}), kTooLarge, "GiB", "-c");
  EXPECT_QIAO_ERROR(Engine(model_, {.pages = 1 << 30}), kTooLarge, "more than a cache can hold");
  EXPECT_QIAO_ERROR(Engine(model_, {.slots = -1}), kInvalidInput, "slots -1");
}

TEST_F(EngineTest, RefusesAContextThatHoldsNoAnswer) {
  EXPECT_QIAO_ERROR(Engine(model_, {.context = 1}), kInvalidInput,
                    "the context (-c) is 1 token; the least is 2");
  EXPECT_QIAO_ERROR(Engine(model_, {.context = 64, .page_tokens = 1, .pages = 1}), kInvalidInput,
                    "the context (-c) is 1 token, which is all that 1 page of 1 tokens hold");
  Engine least(model_, {.context = 2});
  GenerationRequest request = greedy(*model_, kPrompt);
  EXPECT_QIAO_ERROR(run(least, request), kInvalidInput, "do not fit the context of 2",
                    fmt::format("the least for it is {} (-c)", request.prompt.size() + 1).c_str());
  request.prompt.resize(1);
  EXPECT_EQ(run(least, request).tokens.size(), 1u);
}

TEST_F(EngineTest, RefusesAPromptThatCanNeverFitTheCache) {
  Engine small(model_, {.context = 256, .slots = 4, .page_tokens = 16, .pages = 3});
  EXPECT_EQ(small.options().context, 48);
  GenerationRequest request = greedy(*model_, kPrompt);
  request.prompt.assign(48, 65);
  EXPECT_QIAO_ERROR(run(small, request), kInvalidInput, "prompt: 48 tokens", "3 pages of 16");
  request.prompt.pop_back();
  EXPECT_EQ(run(small, request).tokens.size(), 1u);  // then it is full
}

TEST_F(EngineTest, WhenAllHasEndedOnlyThePrefixCacheHoldsPages) {
  Engine engine(model_, {.context = 128, .slots = 4, .page_tokens = 16});
  run(engine, greedy(*model_, kPrompt, 20));
  engine.drain();
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.pages.used, 0);
  EXPECT_GT(stats.pages.cached, 0);
  EXPECT_EQ(stats.pages.total, 32);
  EXPECT_EQ(stats.sliding_pages.total, 0);  // the model has no such layers
  EXPECT_EQ(stats.running + stats.waiting, 0);
}

TEST_F(EngineTest, TenantsShareWhereTheyAreToldTo) {
  for (const bool share : {false, true}) {
    Engine engine(model_, {.context = 128, .page_tokens = 8, .share_across_tenants = share});
    GenerationRequest request = greedy(*model_, kPrompt, 4);
    request.tenant = "one";
    run(engine, request);
    request.tenant = "two";
    EXPECT_EQ(run(engine, request).last.cached_tokens > 0, share);
  }
}

}  // namespace
}  // namespace qiao::testing
