// A request's tokens are the same bytes alone, in company, at any chunk size, page size and number of
// threads.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include "constrain/structure.h"
#include "infer/engine_harness.h"
#include "infer/made_model.h"

namespace qiao::testing {
namespace {

// Grammars with forced runs in them, and none.
std::shared_ptr<constrain::CompiledGrammar> grammar_of(uint64_t number) {
  using constrain::Structure;
  switch (number % 8) {
    case 0:
      return constrain::compile_json_schema(
          parse_json(R"({"type":"object","properties":{"name":{"type":"string"},"bridges":{"type":"array",
                         "items":{"enum":["blue","light","carries"]},"maxItems":3}},"required":["name","bridges"]})",
                     "schema"),
          "schema", constrain::JsonStyle::generation());
    case 1:
      return constrain::compile_regex("([a-f]{2}, )*the bridge( [0-9]+ carries){1,9}", "regex");
    case 2:
      return constrain::compile_structure(
          Structure::sequence({Structure::free_text({"<", "an"}), Structure::literal("<call>"),
                               Structure::token("<|im_start|>"), Structure::free_text({})}),
          "tools");
    case 3:
      return constrain::compile_choice({"light", "lighter than the bridge", "100 bridges"}, "choice");
    default:
      return nullptr;
  }
}

// Requests of many lengths, greedy and drawn, some sharing their beginnings.
std::vector<GenerationRequest> requests(const LanguageModel& model, uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<GenerationRequest> list;
  const std::vector<TokenId> shared =
      model.tokenizer().encode("A bridge carries people over a river; this one carries words.");
  for (size_t i = 0; i < count; ++i) {
    GenerationRequest request;
    if (random() % 2 == 0)
      request.prompt.assign(shared.begin(),
                            shared.begin() + 1 + static_cast<std::ptrdiff_t>(random() % shared.size()));
    const size_t more = 1 + random() % 60;
    for (size_t t = 0; t < more; ++t) request.prompt.push_back(static_cast<TokenId>(3 + random() % 300));
    request.max_tokens = static_cast<int64_t>(1 + random() % 30);
    request.ignore_eos = true;
    request.sampling.temperature = random() % 2 == 0 ? 0.0f : 1.2f;
    request.sampling.seed = random();
    request.sampling.frequency_penalty = random() % 3 == 0 ? 0.5f : 0.0f;
    request.logprobs = random() % 2 == 0;
    request.grammar = grammar_of(i);
    if (!model.adapters().empty() && random() % 3 != 0)
      request.adapter = model.adapters()[random() % model.adapters().size()].name;
    list.push_back(std::move(request));
  }
  return list;
}

void expect_same(const std::vector<TokenLogprobs>& got, const std::vector<TokenLogprobs>& expected,
                 const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].logprob, expected[i].logprob) << where << ", token " << i;  // the same bits
    EXPECT_EQ(got[i].top, expected[i].top) << where << ", token " << i;
  }
}

void expect_same(const Answer& got, const Answer& expected, const std::string& where) {
  EXPECT_EQ(got.tokens, expected.tokens) << where;
  EXPECT_EQ(got.text, expected.text) << where;
  EXPECT_EQ(got.last.finish, expected.last.finish) << where;
  EXPECT_EQ(got.last.completion_tokens, expected.last.completion_tokens) << where;
  EXPECT_EQ(got.last.forced_tokens, expected.last.forced_tokens) << where;
  EXPECT_EQ(got.last.embedding, expected.last.embedding) << where;
  expect_same(got.logprobs, expected.logprobs, where);
  expect_same(got.prompt_logprobs, expected.prompt_logprobs, where);
}

struct Setting {
  const char* name;
  int threads;
  EngineOptions engine;
};

class InvarianceTest : public ::testing::TestWithParam<Setting> {};

TEST_P(InvarianceTest, CompanyChunksPagesAndThreadsChangeNothing) {
  constexpr uint64_t kSeed = 20261123;
  constexpr size_t kCount = 24;
  const auto model = load_chat_model(1, "cpu", chat_adapters());
  const std::vector<GenerationRequest> list = requests(*model, kSeed, kCount);
  std::vector<Answer> alone;
  {
    Engine engine(model, {.context = 160, .slots = 1});
    for (const GenerationRequest& request : list) {
      GenerationRequest fresh = request;
      fresh.tenant = std::to_string(alone.size());  // nothing cached
      alone.push_back(run(engine, fresh));
    }
  }
  const Setting& setting = GetParam();
  const auto other = load_chat_model(setting.threads, "cpu", chat_adapters());
  Engine engine(other, setting.engine);
  std::mt19937_64 random(kSeed + 1);
  std::vector<std::unique_ptr<Pending>> pending;
  for (const GenerationRequest& request : list) {
    pending.push_back(std::make_unique<Pending>(engine, request));
    if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
  }
  for (size_t i = 0; i < list.size(); ++i) {
    const Answer answer = pending[i]->wait();
    expect_same(answer, alone[i], fmt::format("request {}, seed {}", i, kSeed));
  }
}

using Loader = std::function<std::shared_ptr<LanguageModel>(int threads)>;

// A model with its answers, each given alone, for every type of cached keys and values that it can have.
struct Judge {
  std::shared_ptr<LanguageModel> models[2];  // on one thread and on two
  std::vector<DType> dtypes;
  std::vector<GenerationRequest> list;
  std::map<DType, std::vector<Answer>> alone;

  Judge(const Loader& load, std::vector<DType> cached_as, uint64_t seed, size_t count)
      : models{load(1), load(2)}, dtypes(std::move(cached_as)), list(requests(*models[0], seed, count)) {
    for (size_t i = 0; i < count; ++i) vary(i);
    GenerationRequest embedding = list[0];
    embedding.embedding = true;
    embedding.prompt_logprobs = false;
    list.push_back(embedding);
    for (const DType dtype : dtypes) {
      Engine engine(models[0], {.context = 160, .slots = 1, .kv_dtype = dtype, .prefix_cache = false});
      for (const GenerationRequest& request : list) alone[dtype].push_back(run(engine, request));
    }
  }

 private:
  void vary(size_t i) {
    GenerationRequest& request = list[i];
    request.sampling.repetition_penalty = i % 4 == 0 ? 1.3f : 1.0f;
    request.prompt_logprobs = i % 5 == 0;
    request.top_logprobs = i % 3 == 0 ? 2 : 0;
    request.choice = static_cast<int32_t>(i % 2);
    if (i % 7 == 6) request.stop = {"ab", "e"};
    if (i % 4 < 2) return;  // these repeat themselves: there is something to look up
    request.prompt.resize(12, 70);
    const std::vector<TokenId> phrase = request.prompt;
    for (int times = 0; times < 3; ++times)
      request.prompt.insert(request.prompt.end(), phrase.begin(), phrase.end());
    request.grammar = i % 8 == 2 ? constrain::compile_regex("([a-z]+|[A-Z]{2}bridge)*", "regex") : nullptr;
    request.sampling.logit_bias = {{65, 50.0f}, {66, 50.0f}};
    if (i % 8 < 4) request.sampling.temperature = 1.0f;
    request.max_tokens = 50;
  }
};

Loader made(const MadeModel& shape) {
  return [shape](int threads) { return make_model(shape, threads); };
}

// Requests come at random times, some are cancelled, and the pages are so few that others must give theirs
// back; drafts come from the text, from models that are mostly right or mostly wrong, or not at all. Whatever
// the schedule, every answer is the one given alone.
TEST(ScheduleInvarianceTest, ARandomScheduleChangesNoTokenAndNoBit) {
  constexpr uint64_t kSeed = 20261126;
  constexpr size_t kCount = 16;
  std::mt19937_64 random(kSeed);
  const auto from_to = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  const std::vector<DType> all = {DType::kF16, DType::kQ8_0, DType::kF8_E4M3};
  const Loader chat = [](int threads) { return load_chat_model(threads, "cpu", chat_adapters()); };
  const Judge judges[] = {
      Judge(made({.layers = 2}), all, kSeed, kCount),
      Judge(made({.layers = 2, .window = 21}), all, kSeed, kCount),
      Judge(chat, {DType::kF16, DType::kF8_E4M3}, kSeed, kCount),  // its heads are no whole blocks of q8_0
      Judge(made({.layers = 2, .window = 13, .all_slide = true}), all, kSeed, kCount)};
  const std::shared_ptr<LanguageModel> drafts[][3] = {
      {nullptr, make_model({.layers = 2, .noise = 0.03f}),
       make_model({.layers = 1, .window = 9, .seed = 77})},
      {nullptr, make_model({.layers = 2, .window = 21, .noise = 0.03f}),
       make_model({.layers = 1, .seed = 77})},
      {nullptr, load_chat_model(), make_model({.layers = 1, .window = 9, .seed = 77})},
      {nullptr, make_model({.layers = 2, .window = 13, .all_slide = true, .noise = 0.03f}),
       make_model({.layers = 1, .seed = 77})}};
  int64_t preemptions = 0, hits = 0, sliding_hits = 0, accepted = 0, drafted = 0;
  for (int round = 0; round < 48; ++round) {
    const Judge& judge = judges[round % 4];
    const std::vector<GenerationRequest>& list = judge.list;
    EngineOptions options;
    options.context = 160;
    options.slots = from_to(2, 20);
    options.page_tokens = std::array{int64_t{1}, int64_t{16}, int64_t{32}, from_to(2, 40)}[random() % 4];
    const int64_t least = (options.context + options.page_tokens - 1) / options.page_tokens;
    options.pages = from_to(least, least * 2);
    options.sliding_pages = random() % 2 == 0 ? 1 : 0;  // as few as will do
    options.batch_tokens = from_to(1, 100);
    options.prefix_cache = random() % 4 != 0;
    options.kv_dtype = judge.dtypes[random() % judge.dtypes.size()];
    options.lookup = random() % 2 == 0 ? from_to(1, 9) : 0;
    const size_t draft = random() % 3;
    options.draft = drafts[round % 4][draft];
    options.draft_max = from_to(1, 9);
    if (random() % 2 == 0) {
      options.lookup = 0;
      options.draft = nullptr;
      options.run_ahead = true;
    }
    Engine engine(judge.models[static_cast<size_t>(from_to(0, 1))], options);
    const std::string where = fmt::format(
        "seed {}, round {}: slots {}, pages {} and {} of {}, batch {}, prefix cache {}, {}, lookup {}, draft "
        "{} of {}, {}",
        kSeed, round, options.slots, options.pages, engine.options().sliding_pages, options.page_tokens,
        options.batch_tokens, options.prefix_cache, traits(options.kv_dtype).name, options.lookup, draft,
        options.draft_max, options.run_ahead ? "running ahead" : "step by step");
    std::vector<GenerationRequest> requests = list;
    for (GenerationRequest& request : requests) request.tenant = random() % 4 == 0 ? "other" : "";
    RandomRequests(engine, requests, random).wait([&](size_t i, const Answer& answer) {
      expect_same(answer, judge.alone.at(options.kv_dtype)[i], fmt::format("{}, request {}", where, i));
    });
    engine.drain();
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.pages.used + stats.sliding_pages.used, 0) << where;
    if (stats.sliding_pages.total > 0) sliding_hits += stats.prefix_hits;
    preemptions += stats.preemptions;
    hits += stats.prefix_hits;
    accepted += stats.accepted_tokens;
    drafted += stats.drafted_tokens;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(drafted, accepted);  // right drafts and wrong ones
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(hits, 0);
  EXPECT_GT(sliding_hits, 0);
}

INSTANTIATE_TEST_SUITE_P(
    All, InvarianceTest,
    ::testing::Values(
        Setting{"Company", 1, {.context = 160, .slots = 32}},
        Setting{"ChunksOfOne", 1, {.context = 160, .slots = 4, .batch_tokens = 1}},
        Setting{"ChunksOfSeven", 2, {.context = 160, .slots = 8, .batch_tokens = 7}},
        Setting{"PagesOfOne", 1, {.context = 160, .slots = 8, .page_tokens = 1, .batch_tokens = 50}},
        Setting{"PagesOfSeven", 3, {.context = 160, .slots = 3, .page_tokens = 7}},
        Setting{"FewSlots", 2, {.context = 160, .slots = 2, .page_tokens = 64, .batch_tokens = 33}}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace qiao::testing
