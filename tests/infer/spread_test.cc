// An engine whose model is spread over several ranks, threads here: the answers of one rank, the same bits in
// any company, and what a request hears where a rank is lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <thread>

#include "infer/engine_harness.h"
#include "parallel/communicator.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"

namespace qiao::testing {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<LanguageModel> load_rank(Communicator& ranks,
                                         const std::vector<AdapterSource>& adapters = {}) {
  LanguageModelOptions options;
  options.adapters = adapters;
  options.device = "cpu";
  options.threads = 1;
  options.decoder.ranks = &ranks;
  return LanguageModel::load(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "chat", options);
}

// The chat model on `size` ranks, rank 0's in `body`. The others follow, or are lost as they would begin to.
void on_ranks(int size, bool lost, const std::function<void(std::shared_ptr<LanguageModel>)>& body,
              const std::vector<AdapterSource>& adapters = {}) {
  auto communicators = make_thread_communicators(size, 60);
  std::vector<std::thread> others;
  for (size_t rank = 1; rank < communicators.size(); ++rank) {
    others.emplace_back([lost, &adapters, own = std::move(communicators[rank])]() mutable {
      auto model = load_rank(*own, adapters);
      if (!lost) {
        model->decoder().follow();
        own->finish();
      }
      model.reset();
      own.reset();
    });
  }
  std::shared_ptr<LanguageModel> model = load_rank(*communicators[0], adapters);
  body(std::move(model));
  if (!lost) communicators[0]->finish();
  communicators[0].reset();
  for (std::thread& other : others) other.join();
}

std::vector<GenerationRequest> some_requests(const LanguageModel& model) {
  std::vector<GenerationRequest> list;
  const std::string text = "A bridge carries people over a river; this one carries words.";
  for (size_t i = 0; i < 12; ++i) {
    GenerationRequest request = greedy(model, text.substr(0, 4 + 5 * i), 20);
    request.logprobs = true;
    request.prompt_logprobs = i % 3 == 0;
    if (i % 2 == 1) {
      request.sampling.temperature = 1.0f;
      request.sampling.seed = i;
    }
    list.push_back(std::move(request));
  }
  return list;
}

std::vector<Answer> answers(Engine& engine, const std::vector<GenerationRequest>& list, bool together) {
  std::vector<std::unique_ptr<Pending>> pending;
  std::vector<Answer> all;
  for (const GenerationRequest& request : list) {
    pending.push_back(std::make_unique<Pending>(engine, request));
    if (!together) all.push_back(pending.back()->wait());
  }
  for (size_t i = all.size(); i < list.size(); ++i) all.push_back(pending[i]->wait());
  return all;
}

TEST(SpreadEngineTest, AnswersAreThoseOfOneRankAndTheSameBitsInAnyCompany) {
  const auto whole = load_chat_model();
  const auto list = some_requests(*whole);
  Engine one(whole, {.context = 160, .kv_dtype = DType::kF32});
  const auto expected = answers(one, list, false);
  for (const int size : {2, 4}) {
    on_ranks(size, false, [&](std::shared_ptr<LanguageModel> model) {
      EXPECT_EQ(model->decoder().ranks(), size);
      std::vector<Answer> alone;
      // F32 pages: a difference in a sum's last bit could round a key of 16 bits the other way.
      std::vector<EngineOptions> settings = {
          {.context = 160, .prefix_cache = false},
          {.context = 160, .slots = 12},
          {.context = 160, .slots = 5, .page_tokens = 7, .batch_tokens = 3},
          {.context = 160, .slots = 12, .pages = 12, .batch_tokens = 20},
          {.context = 160, .slots = 5, .batch_tokens = 20, .run_ahead = true},
          {.context = 160, .slots = 12, .pages = 12, .batch_tokens = 20, .run_ahead = true}};
      for (EngineOptions& setting : settings) setting.kv_dtype = DType::kF32;
      for (const EngineOptions& setting : settings) {
        Engine engine(model, setting);
        const auto got = answers(engine, list, !alone.empty());
        engine.drain();
        EXPECT_EQ(engine.stats().ahead_steps > 0, setting.run_ahead.value_or(false));
        if (alone.empty()) alone = got;
        for (size_t i = 0; i < list.size(); ++i) {
          EXPECT_EQ(got[i].tokens, expected[i].tokens) << i;
          EXPECT_EQ(got[i].text, expected[i].text) << i;
          ASSERT_EQ(got[i].logprobs.size(), alone[i].logprobs.size());
          ASSERT_EQ(got[i].prompt_logprobs.size(), expected[i].prompt_logprobs.size());
          for (size_t t = 0; t < got[i].logprobs.size(); ++t) {
            EXPECT_EQ(got[i].logprobs[t].logprob, alone[i].logprobs[t].logprob) << i << ", " << t;
            EXPECT_NEAR(got[i].logprobs[t].logprob, expected[i].logprobs[t].logprob, 1e-4) << i << ", " << t;
          }
        }
      }
    });
  }
}

// Whatever one rank would answer: each has the rows of its own heads, and their scales.
TEST(SpreadEngineTest, PagesOfFp8AreTheSameBitsInAnyCompany) {
  const auto list = some_requests(*load_chat_model());
  on_ranks(2, false, [&](std::shared_ptr<LanguageModel> model) {
    Engine single(model, {.context = 160, .kv_dtype = DType::kF8_E4M3, .prefix_cache = false});
    const auto alone = answers(single, list, false);
    Engine engine(model, {.context = 160, .slots = 5, .page_tokens = 7, .kv_dtype = DType::kF8_E4M3});
    const auto got = answers(engine, list, true);
    for (size_t i = 0; i < list.size(); ++i) {
      EXPECT_EQ(got[i].tokens, alone[i].tokens) << i;
      ASSERT_EQ(got[i].logprobs.size(), alone[i].logprobs.size());
      for (size_t t = 0; t < got[i].logprobs.size(); ++t)
        EXPECT_EQ(got[i].logprobs[t].logprob, alone[i].logprobs[t].logprob) << i << ", " << t;
    }
  });
}

// Each rank has its rows of B or its columns of A. F32, so that the texts are those of one rank.
TEST(SpreadEngineTest, AdaptersAreThoseOfOneRank) {
  const auto whole = load_chat_model(1, "cpu", chat_adapters());
  auto list = some_requests(*whole);
  for (size_t i = 0; i < list.size(); ++i) list[i].adapter = i % 3 == 0 ? "" : i % 3 == 1 ? "one" : "two";
  Engine one(whole, {.context = 160, .kv_dtype = DType::kF32});
  const auto expected = answers(one, list, false);
  for (const int size : {2, 4}) {
    on_ranks(
        size, false,
        [&](std::shared_ptr<LanguageModel> model) {
          Engine engine(model, {.context = 160, .slots = 12, .kv_dtype = DType::kF32});
          const auto got = answers(engine, list, true);
          for (size_t i = 0; i < list.size(); ++i) {
            EXPECT_EQ(got[i].tokens, expected[i].tokens) << i;
            ASSERT_EQ(got[i].logprobs.size(), expected[i].logprobs.size());
            for (size_t t = 0; t < got[i].logprobs.size(); ++t)
              EXPECT_NEAR(got[i].logprobs[t].logprob, expected[i].logprobs[t].logprob, 1e-4)
                  << i << ", " << t;
          }
        },
        chat_adapters());
  }
}

// Rank 1 has other ones: the first says so, before any step.
TEST(SpreadEngineTest, OtherAdaptersAreRefused) {
  auto communicators = make_thread_communicators(2, 60);
  std::thread other([&] {
    auto model = load_rank(*communicators[1], {chat_adapters().front()});
    model.reset();
  });
  EXPECT_QIAO_ERROR(load_rank(*communicators[0], chat_adapters()), kInvalidInput, "LoRA adapters [one ",
                    ", two ", "the same was expected");
  other.join();
}

TEST(SpreadEngineTest, HiddenStatesAreThere) {
  const auto whole = load_chat_model();
  GenerationRequest request = greedy(*whole, "A bridge carries people");
  request.embedding = true;
  Engine one(whole, {.context = 160});
  const Answer expected = run(one, request);
  on_ranks(2, false, [&](std::shared_ptr<LanguageModel> model) {
    Engine engine(std::move(model), {.context = 160});
    const Answer got = run(engine, request);
    ASSERT_EQ(got.last.embedding.size(), expected.last.embedding.size());
    for (size_t i = 0; i < got.last.embedding.size(); ++i)
      EXPECT_NEAR(got.last.embedding[i], expected.last.embedding[i], 1e-5) << i;
  });
}

TEST(SpreadEngineTest, ALostRankIsNamed) {
  on_ranks(2, true, [&](std::shared_ptr<LanguageModel> model) {
    EXPECT_QIAO_ERROR(Engine(model, {.context = 160}), kUnavailable, "rank 1 is lost");
  });
}

// In the first one's file, the parts of all; a page whose part is lost would change an answer's bits.
TEST(SpreadEngineTest, ARestartKeepsThePagesOfAllRanks) {
  const TemporaryDirectory folder;
  for (const int size : {2, 4}) {
    on_ranks(size, false, [&](std::shared_ptr<LanguageModel> model) {
      GenerationRequest request =
          greedy(*model, "A bridge carries people over a river; this one carries words.", 12);
      request.logprobs = true;
      const EngineOptions options = {.context = 160,
                                     .page_tokens = 8,
                                     .kv_dtype = size == 2 ? DType::kF8_E4M3 : DType::kF16,
                                     .cache_directory = folder.path()};
      Answer cold;
      {
        Engine engine(model, options);
        EXPECT_EQ(engine.restored(), "");  // those of two are nothing to four
        cold = run(engine, request);
        engine.drain();
        EXPECT_THAT(engine.save_cache(), HasSubstr("Saved "));
      }
      Engine engine(model, options);
      EXPECT_THAT(engine.restored(), HasSubstr("Restored "));
      const Answer warm = run(engine, request);
      EXPECT_GE(warm.last.cached_tokens, warm.last.prompt_tokens - 8);
      EXPECT_EQ(warm.tokens, cold.tokens);
      ASSERT_EQ(warm.logprobs.size(), cold.logprobs.size());
      for (size_t i = 0; i < cold.logprobs.size(); ++i)
        EXPECT_EQ(warm.logprobs[i].logprob, cold.logprobs[i].logprob) << i;
    });
  }
}

// Other ranks would compute another thing: who runs what is asked before anything else.
TEST(SpreadEngineTest, RefusesAnotherModelOnAnotherRank) {
  namespace fs = std::filesystem;
  const fs::path chat = fs::path(QIAO_TEST_DATA) / "golden" / "chat";
  const TemporaryDirectory folder;  // the same name and size, and one other number
  const fs::path trained_on = folder.path() / "chat";
  fs::copy(chat, trained_on);
  std::fstream weights(trained_on / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  weights.seekp(-4, std::ios::end);
  weights.write("\0\0\0\1", 4);
  weights.close();
  const auto refusal = [&](const fs::path& theirs, const std::function<void(LanguageModelOptions&)>& change) {
    auto communicators = make_thread_communicators(2, 60);
    std::thread other([&, own = std::move(communicators[1])]() mutable {
      LanguageModelOptions options;
      options.device = "cpu";
      options.threads = 1;
      options.decoder.ranks = own.get();
      change(options);
      LanguageModel::load(theirs, options);
    });
    std::string message;
    try {
      load_rank(*communicators[0]);
    } catch (const Error& error) {
      message = error.what();
    }
    other.join();
    return message;
  };
  const auto same = [](LanguageModelOptions&) {};
  EXPECT_THAT(refusal(chat, [](LanguageModelOptions& o) { o.device = "reference"; }),
              HasSubstr("the same was expected"));
  EXPECT_THAT(refusal(trained_on, same), HasSubstr("the same was expected"));
  EXPECT_THAT(
      refusal(chat, [](LanguageModelOptions& o) { o.decoder.compute = DecoderOptions::Policy::kF32; }),
      HasSubstr("computing f32"));
  EXPECT_THAT(refusal(chat, [](LanguageModelOptions& o) { o.decoder.context = 100; }),
              HasSubstr("with a context of 100"));
}

}  // namespace
}  // namespace qiao::testing
