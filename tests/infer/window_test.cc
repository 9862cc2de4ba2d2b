// Sliding-window layers keep only their window: golden models (tests/golden/make_models.py) with windows of
// eight tokens, at page sizes below and above that, on as few pages as will do.
#include <gtest/gtest.h>

#include <random>

#include "infer/engine_harness.h"
#include "support/temporary_directory.h"

namespace qiao::testing {
namespace {

constexpr int64_t kGoldenTokens = 96, kGoldenWindow = 8;

// With a tokenizer of a character a token, which the golden models come without.
std::shared_ptr<LanguageModel> load_golden(const std::string& name, int threads = 1) {
  const TemporaryDirectory directory;
  const auto golden = std::filesystem::path(QIAO_TEST_DATA) / "golden" / "models" / name;
  for (const char* file : {"config.json", "model.safetensors"})
    directory.write(file, read_file(golden / file, size_t{1} << 24));
  Json vocabulary = Json::object();
  for (int id = 0; id < kGoldenTokens; ++id) vocabulary[std::string(1, static_cast<char>(' ' + id))] = id;
  const Json tokenizer = {{"version", "1.0"},
                          {"added_tokens", Json::array()},
                          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
  directory.write("tokenizer.json", dump_json(tokenizer));
  return LanguageModel::load(directory.path(), {.device = "cpu", .threads = threads});
}

GenerationRequest request_of(std::vector<TokenId> prompt, int64_t max_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.logprobs = true;
  request.sampling.temperature = 0.0f;
  return request;
}

std::vector<GenerationRequest> window_requests(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<TokenId> shared;
  for (int i = 0; i < 40; ++i) shared.push_back(static_cast<TokenId>(3 + random() % 90));
  std::vector<GenerationRequest> list;
  for (size_t i = 0; i < count; ++i) {
    std::vector<TokenId> prompt;
    if (random() % 3 != 0)
      prompt.assign(shared.begin(), shared.begin() + static_cast<std::ptrdiff_t>(random() % shared.size()));
    for (size_t more = 1 + random() % 40; more > 0; --more)
      prompt.push_back(static_cast<TokenId>(3 + random() % 90));
    list.push_back(request_of(std::move(prompt), static_cast<int64_t>(1 + random() % 40)));
    list.back().sampling.temperature = random() % 2 == 0 ? 0.0f : 1.2f;
    list.back().sampling.seed = random();
    list.back().prompt_logprobs = random() % 6 == 0;
  }
  return list;
}

void expect_same_bits(const Answer& got, const Answer& expected, const std::string& where) {
  EXPECT_EQ(got.tokens, expected.tokens) << where;
  ASSERT_EQ(got.logprobs.size(), expected.logprobs.size()) << where;
  for (size_t i = 0; i < got.logprobs.size(); ++i)
    EXPECT_EQ(got.logprobs[i].logprob, expected.logprobs[i].logprob) << where;
  ASSERT_EQ(got.prompt_logprobs.size(), expected.prompt_logprobs.size()) << where;
  for (size_t i = 0; i < got.prompt_logprobs.size(); ++i)
    EXPECT_EQ(got.prompt_logprobs[i].logprob, expected.prompt_logprobs[i].logprob) << where;
}

class WindowTest : public ::testing::TestWithParam<const char*> {};

TEST_P(WindowTest, ARandomScheduleOnFewPagesChangesNoBit) {
  constexpr uint64_t kSeed = 20261127;
  const std::shared_ptr<LanguageModel> models[] = {load_golden(GetParam()), load_golden(GetParam(), 2)};
  const std::vector<GenerationRequest> list = window_requests(kSeed, 14);
  std::vector<Answer> alone;
  {
    Engine engine(models[0], {.context = 120, .page_tokens = 120, .prefix_cache = false});
    for (const GenerationRequest& request : list) alone.push_back(run(engine, request));
  }
  std::mt19937_64 random(kSeed);
  const auto from_to = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  int64_t hits = 0, preemptions = 0;
  for (int round = 0; round < 24; ++round) {
    EngineOptions options;
    options.context = 120;
    options.slots = from_to(1, 9);
    options.page_tokens = from_to(1, 12);
    const int64_t least = (options.context + options.page_tokens - 1) / options.page_tokens;
    options.pages = from_to(least, least * 3);
    options.sliding_pages = random() % 2 == 0 ? 1 : 0;  // as few as will do
    options.batch_tokens = from_to(1, 50);
    options.prefix_cache = random() % 4 != 0;
    options.lookup = random() % 2 == 0 ? from_to(1, 9) : 0;
    Engine engine(models[random() % 2], options);
    const std::string where = fmt::format(
        "seed {}, round {}: slots {}, pages {} and {} of {}, batch {}, prefix cache {}, lookup {}", kSeed,
        round, options.slots, options.pages, engine.options().sliding_pages, options.page_tokens,
        options.batch_tokens, options.prefix_cache, options.lookup);
    RandomRequests(engine, list, random).wait([&](size_t i, const Answer& answer) {
      expect_same_bits(answer, alone[i], fmt::format("{}, request {}", where, i));
    });
    engine.drain();
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.pages.used + stats.sliding_pages.used, 0) << where;
    hits += stats.prefix_hits;
    preemptions += stats.preemptions;
  }
  EXPECT_GT(hits, 0);
  EXPECT_GT(preemptions, 0);
}

// There are no more pages than a window, a chunk and two pages hold: whatever is longer runs on those.
TEST_P(WindowTest, ASequenceOfManyWindowsUsesOneWindowsPages) {
  constexpr int64_t kChunk = 4, kPageTokens = 2;
  const auto model = load_golden(GetParam());
  Engine engine(model,
                {.context = 120, .page_tokens = kPageTokens, .sliding_pages = 1, .batch_tokens = kChunk});
  EXPECT_LE(engine.options().sliding_pages * kPageTokens, kGoldenWindow + kChunk + 2 * kPageTokens);
  std::vector<TokenId> prompt(64);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<TokenId>(3 + (i * 7) % 90);
  int64_t most = 0;
  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;
  engine.submit(request_of(prompt, 50), [&](const GenerationEvent& event) {
    most = std::max(most, engine.stats().sliding_pages.used);
    const std::lock_guard lock(mutex);
    ended = event.finish != FinishReason::kNone;
    changed.notify_all();
  });
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return ended; });
  EXPECT_GT(most, 0);
  EXPECT_LE(most * kPageTokens, kGoldenWindow + kChunk + kPageTokens);
}

TEST_P(WindowTest, APromptIsFoundAgainAfterOthers) {
  const auto model = load_golden(GetParam());
  Engine engine(model, {.context = 120, .slots = 2, .page_tokens = 2, .batch_tokens = 4});
  EXPECT_LT(engine.options().sliding_pages, 30);  // and a prompt has 45 pages
  std::vector<TokenId> prompt(90, 5);
  const Answer cold = run(engine, request_of(prompt, 12));
  prompt[0] = 6;
  EXPECT_EQ(run(engine, request_of(prompt, 12)).last.cached_tokens, 0);
  prompt[0] = 5;
  const Answer warm = run(engine, request_of(prompt, 12));
  EXPECT_EQ(warm.last.cached_tokens, 88);
  expect_same_bits(warm, cold, "warm");
}

TEST(WindowMemoryTest, AModelThatOnlySlidesHasNoOtherPages) {
  const auto model = load_golden("mistral");
  const KvCache::PageBytes page =
      KvCache::bytes_per_page(model->backend(), model->decoder().config(), 2, DType::kF16);
  EXPECT_EQ(page.full, 0u);
  Engine engine(model, {.context = 120, .slots = 2, .page_tokens = 2, .batch_tokens = 4});
  EXPECT_EQ(engine.options().pages, 120);
  // Twice what two slots can use: windows of four pages and two more each, a step of two.
  EXPECT_EQ(engine.options().sliding_pages, 2 * (2 * (4 + 2) + 2));
  EXPECT_EQ(engine.memory().cache, 28 * page.sliding);
}

TEST(WindowMemoryTest, ThereAreNeverMorePagesOfTheWindowThanOthers) {
  const auto model = load_golden("gemma3");
  Engine engine(model, {.context = 20, .slots = 2, .page_tokens = 2, .batch_tokens = 64});
  EXPECT_EQ(engine.options().pages, 20);
  EXPECT_EQ(engine.options().sliding_pages, 20);
}

INSTANTIATE_TEST_SUITE_P(Golden, WindowTest, ::testing::Values("gemma2", "gemma3", "mistral"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qiao::testing
