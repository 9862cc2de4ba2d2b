// What a step takes and gives, beyond the logits of one sequence.
#include "models/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "models/allocation_counter.h"
#include "models/spoiled_files.h"
#include "models/step_driver.h"
#include "support/expect_error.h"
#include "tensor/half.h"

namespace qiao {
namespace {

using testing::golden_models;
using ::testing::HasSubstr;
using testing::ModelFolder;
using testing::StepDriver;

struct Loaded {
  explicit Loaded(const std::string& folder, const std::string& chip = "cpu", DecoderOptions options = {})
      : files(ModelFolder(folder).open()),
        backend(make_backend(chip, {.threads = 1})),
        decoder(Decoder::load(*files, *backend, options)) {}
  std::shared_ptr<ModelFiles> files;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Decoder> decoder;
};

std::vector<int32_t> some_tokens(int32_t count, int32_t step = 5) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = (i * step + 3) % 96;
  return tokens;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

TEST(DecoderTest, GivesTheWantedRowsOnly) {
  for (const std::string folder : {"llama", "gemma2", "qwen3-moe", "hunyuan-moe"}) {
    SCOPED_TRACE(folder);
    const Loaded model(folder);
    const auto tokens = some_tokens(12);
    const auto all = StepDriver(*model.decoder, 12).feed_in_chunks(tokens, 12);
    const int32_t rows[] = {2, 7, 11};
    const auto some = StepDriver(*model.decoder, 12).feed(tokens, rows);
    ASSERT_EQ(some.size(), 3u * 96);
    for (size_t i = 0; i < 3; ++i)
      EXPECT_TRUE(
          same_bits({some.data() + i * 96, 96}, {all.data() + static_cast<size_t>(rows[i]) * 96, 96}));
  }
}

TEST(DecoderTest, AStepWithoutOutputsFillsTheCacheAllTheSame) {
  const Loaded model("gemma3");
  const auto tokens = some_tokens(20);
  const auto all = StepDriver(*model.decoder, 20).feed_in_chunks(tokens, 20);
  StepDriver driver(*model.decoder, 20);
  const std::span<const int32_t> span(tokens);
  EXPECT_TRUE(driver.feed(span.first(19), {}).empty());
  const int32_t row = 0;
  const auto last = driver.feed(span.subspan(19), {&row, 1});
  EXPECT_TRUE(same_bits(last, {all.data() + 19 * 96, 96}));
}

// A batch of a prefill chunk and a decode token gives each what it gives alone, bit for bit.
TEST(DecoderTest, SequencesInOneStepDoNotSeeEachOther) {
  for (const std::string folder : {"llama", "mistral", "qwen3-moe"}) {
    SCOPED_TRACE(folder);
    const Loaded model(folder);
    const auto a = some_tokens(9), b = some_tokens(11, 7);
    const auto alone_a = StepDriver(*model.decoder, 9).feed_in_chunks(a, 9);
    const auto alone_b = StepDriver(*model.decoder, 11).feed_in_chunks(b, 11);

    KvCache cache(*model.backend, model.decoder->config(), 8, 4, DType::kF32);
    const auto workspace = model.decoder->make_workspace({20, 2, 4, 20}, cache);
    // b's first ten tokens, in pages 4 to 6.
    std::vector<int32_t> positions(10), slots(10);
    std::iota(positions.begin(), positions.end(), 0);
    std::iota(slots.begin(), slots.end(), 16);
    const int32_t table_b[] = {4, 5, 6, 0}, length_b = 10, starts_b[] = {0, 10};
    model.decoder->forward({std::span(b).first(10), positions, slots, table_b, {&length_b, 1}, starts_b, {}},
                           cache, *workspace);
    // Then all of a, in pages 0 to 2, and b's last token.
    std::vector<int32_t> tokens(a);
    tokens.push_back(b.back());
    std::vector<int32_t> both_positions(9), both_slots(9);
    std::iota(both_positions.begin(), both_positions.end(), 0);
    std::iota(both_slots.begin(), both_slots.end(), 0);
    both_positions.push_back(10);
    both_slots.push_back(26);
    const int32_t table[] = {0, 1, 2, 0, 4, 5, 6, 0}, lengths[] = {9, 11}, starts[] = {0, 9, 10},
                  rows[] = {8, 9};
    const auto outputs = model.decoder->forward(
        {tokens, both_positions, both_slots, table, lengths, starts, rows}, cache, *workspace);
    std::vector<float> logits(2 * 96);
    model.backend->download(logits.data(), outputs.logits.data, logits.size() * sizeof(float));
    EXPECT_TRUE(same_bits({logits.data(), 96}, {alone_a.data() + 8 * 96, 96}));
    EXPECT_TRUE(same_bits({logits.data() + 96, 96}, {alone_b.data() + 10 * 96, 96}));
  }
}

TEST(DecoderTest, PageSizeChangesNoBit) {
  const Loaded model("gemma2");
  const auto tokens = some_tokens(23);
  const auto expected = StepDriver(*model.decoder, 23, 4).feed_in_chunks(tokens, 5);
  for (const int64_t page_tokens : {1, 16, 64})
    EXPECT_TRUE(same_bits(StepDriver(*model.decoder, 23, page_tokens).feed_in_chunks(tokens, 5), expected));
}

// Pages of sliding-window layers are given away and overwritten as soon as the window has left them.
TEST(DecoderTest, LayersWithAWindowNeedOnlyTheirWindowsPages) {
  for (const std::string folder : {"gemma2", "gemma3", "mistral"}) {
    SCOPED_TRACE(folder);
    const Loaded model(folder);
    const int64_t window = model.decoder->config().sliding_window;
    constexpr int32_t kTokens = 90;
    ASSERT_TRUE(window > 0 && 5 * window < kTokens);
    const auto tokens = some_tokens(kTokens);
    const auto expected = StepDriver(*model.decoder, kTokens).feed_in_chunks(tokens, kTokens);
    for (const int64_t page_tokens : {1, 2, 5, 16}) {
      for (const size_t chunk : {1, 7, 20}) {
        // The window and the chunk, each begun within a page.
        const int64_t tokens_held = window - 1 + static_cast<int64_t>(chunk);
        const int64_t pages = (tokens_held + page_tokens - 2) / page_tokens + 1;
        StepDriver driver(*model.decoder, kTokens, page_tokens, pages);
        EXPECT_TRUE(same_bits(driver.feed_in_chunks(tokens, chunk), expected))
            << "pages of " << page_tokens << ", chunks of " << chunk;
      }
    }
  }
}

TEST(DecoderTest, RefusesPagesOfTheWindowThatAreNotThere) {
  const Loaded model("mistral");
  const auto window = static_cast<int32_t>(model.decoder->config().sliding_window);
  const int32_t length =
      window + 4;  // in pages of two tokens: of the last token's window the first is page 2
  const int64_t pages = length / 2;
  KvCache cache(*model.backend, model.decoder->config(), pages, 2, DType::kF32, pages);
  EXPECT_TRUE(cache.slides(0));
  const auto workspace = model.decoder->make_workspace({1, 1, pages, 1}, cache);
  std::vector<int32_t> table(static_cast<size_t>(pages));
  std::iota(table.begin(), table.end(), 0);
  const int32_t token = 5, position = length - 1, starts[] = {0, 1};
  StepBatch batch = {{&token, 1}, {&position, 1}, {&position, 1}, table, {&length, 1}, starts, {}};
  const auto forward = [&] { (void)model.decoder->forward(batch, cache, *workspace); };
  EXPECT_QIAO_ERROR(forward(), kInvalidInput, "0 slots and 0 table entries of sliding layers");
  batch.sliding_slots = {&position, 1};
  std::vector<int32_t> sliding(table);
  batch.sliding_table = sliding;
  sliding[0] = sliding[1] = -1;
  EXPECT_NO_THROW(forward());
  sliding[2] = -1;
  EXPECT_QIAO_ERROR(forward(), kInvalidInput, "page of the window 0 is -1");
  sliding[2] = 2;
  sliding[1] = static_cast<int32_t>(pages);
  EXPECT_QIAO_ERROR(forward(), kInvalidInput, "page before the window 1");
  sliding[1] = -2;
  EXPECT_QIAO_ERROR(forward(), kInvalidInput, "page before the window 1 is -2");
}

TEST(DecoderTest, WithoutLogitsOnlyTheHiddenStatesCome) {
  const Loaded model("llama");
  KvCache cache(*model.backend, model.decoder->config(), 1, 4, DType::kF32);
  const auto workspace = model.decoder->make_workspace({4, 1, 1, 4}, cache);
  const int32_t tokens[] = {5, 6}, positions[] = {0, 1}, table[] = {0}, lengths[] = {2}, starts[] = {0, 2};
  const StepBatch batch = {tokens, positions, positions, table, lengths, starts, positions};
  const auto outputs = model.decoder->forward(batch, cache, *workspace, false);
  EXPECT_FALSE(outputs.logits.present());
  EXPECT_EQ(to_string(outputs.hidden), "F32[2, 32]");
}

TEST(AllocationCounterTest, Counts) {
  const testing::AllocationCounter counter;
  ::operator delete(::operator new(8));
  EXPECT_EQ(counter.count(), 1);
}

TEST(DecoderTest, ASteadyStepTakesNothingFromTheHeap) {
  for (const std::string folder : {"llama", "gemma2", "qwen3-moe", "hunyuan-moe"}) {
    const Loaded model(folder);
    KvCache cache(*model.backend, model.decoder->config(), 4, 16, DType::kF16);
    const auto workspace = model.decoder->make_workspace({8, 1, 4, 1}, cache);
    const int32_t table[] = {0, 1, 2, 3}, starts[] = {0, 1}, row = 0;
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t token = 7 + i, length = i + 1;
      const testing::AllocationCounter counter;
      model.decoder->forward({{&token, 1}, {&i, 1}, {&i, 1}, table, {&length, 1}, starts, {&row, 1}}, cache,
                             *workspace);
      const int64_t taken = counter.count();
      if (i > 0) {  // the first may set things up
        EXPECT_EQ(taken, 0) << folder;
      }
    }
  }
}

struct WrongStep {
  std::string name, expected;
  std::vector<int32_t> tokens, positions, slots, table, lengths, starts, rows;
};

TEST(DecoderTest, WrongStepsAreRefused) {
  const Loaded model("llama");
  KvCache cache(*model.backend, model.decoder->config(), 4, 4, DType::kF32);
  const auto workspace = model.decoder->make_workspace({4, 2, 2, 2}, cache);
  const WrongStep steps[] = {
      {"token past the vocabulary", "token 1 is 96; 0 to 95", {1, 96}, {0, 1}, {0, 1}, {0}, {2}, {0, 2}, {1}},
      {"negative token", "token 0 is -1", {-1, 5}, {0, 1}, {0, 1}, {0}, {2}, {0, 2}, {1}},
      {"negative position", "position 0 is -1", {1, 5}, {-1, 1}, {0, 1}, {0}, {2}, {0, 2}, {1}},
      {"slot past the pages", "slot 1 is 16; 0 to 15", {1, 5}, {0, 1}, {0, 16}, {0}, {2}, {0, 2}, {1}},
      {"page past the cache", "page table entry 0 is 4", {1, 5}, {0, 1}, {0, 1}, {4}, {2}, {0, 2}, {1}},
      {"length past the table",
       "2 new tokens of 5 in 1 pages of 4",
       {1, 5},
       {3, 4},
       {3, 4},
       {0},
       {5},
       {0, 2},
       {1}},
      {"more queries than tokens kept", "2 new tokens of 1", {1, 5}, {0, 1}, {0, 1}, {0}, {1}, {0, 2}, {1}},
      {"starts that end early",
       "query starts do not run from 0 to 2",
       {1, 5},
       {0, 1},
       {0, 1},
       {0},
       {2},
       {0, 1},
       {1}},
      {"rows out of order", "output rows do not ascend", {1, 5}, {0, 1}, {0, 1}, {0}, {2}, {0, 2}, {1, 0}},
      {"row past the tokens", "output row 0 is 2", {1, 5}, {0, 1}, {0, 1}, {0}, {2}, {0, 2}, {2}},
      {"too many tokens",
       "5 tokens; the workspace is for 4",
       {1, 2, 3, 4, 5},
       {0, 1, 2, 3, 4},
       {0, 1, 2, 3, 4},
       {0, 1},
       {5},
       {0, 5},
       {1}},
      {"too many outputs", "3 outputs", {1, 2, 3}, {0, 1, 2}, {0, 1, 2}, {0}, {3}, {0, 3}, {0, 1, 2}},
      {"too many pages", "3 pages of a sequence", {1, 2}, {0, 1}, {0, 1}, {0, 1, 2}, {2}, {0, 2}, {1}},
      {"fewer slots than tokens", "2 positions and 1 slots", {1, 2}, {0, 1}, {0}, {0}, {2}, {0, 2}, {1}},
      {"no tokens", "no tokens", {}, {}, {}, {0}, {0}, {0, 0}, {}},
  };
  for (const WrongStep& step : steps) {
    try {
      model.decoder->forward(
          {step.tokens, step.positions, step.slots, step.table, step.lengths, step.starts, step.rows}, cache,
          *workspace);
      ADD_FAILURE() << step.name << " is not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidInput);
      EXPECT_THAT(error.what(), HasSubstr(step.expected)) << step.name;
    }
  }
}

TEST(DecoderLoadTest, ATiedEmbeddingIsKeptOnce) {
  const Loaded tied("qwen2", "reference"), untied("llama", "reference");
  EXPECT_EQ(tied.files->find("lm_head.weight"), nullptr);
  // The weights of the file and nothing more, but for the chip's padding.
  EXPECT_LT(tied.decoder->weight_bytes(), tied.files->weight_bytes() + 96 * 32 * sizeof(float));
  EXPECT_GE(untied.decoder->weight_bytes(), untied.files->weight_bytes());
}

TEST(DecoderLoadTest, ReportsProgressToTheEnd) {
  std::vector<uint64_t> done;
  uint64_t all = 0;
  DecoderOptions options;
  options.progress = [&](uint64_t now, uint64_t total) {
    done.push_back(now);
    all = total;
  };
  const Loaded model("hunyuan-moe", "reference", options);
  EXPECT_TRUE(std::ranges::is_sorted(done));
  EXPECT_EQ(done.back(), all);
  EXPECT_EQ(all, model.files->weight_bytes());
}

TEST(DecoderLoadTest, ProgressMayStopIt) {
  DecoderOptions options;
  options.progress = [](uint64_t, uint64_t) { throw Error(ErrorKind::kCancelled, "enough"); };
  EXPECT_THROW(Loaded("llama", "reference", options), Error);
}

// Every byte of a source is given back once, in order, by the chip that lays it out bit by bit.
TEST(DecoderLoadTest, SourceBytesAreGivenBackOnce) {
  const auto backend = make_backend("cpu", {.threads = 2});
  constexpr int64_t kRows = 1000, kMore = 40, kColumns = 8192;  // 34 MB: more than one batch
  const std::vector<float> values((kRows + kMore) * kColumns, 1.0f);
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  int64_t calls = 0;
  const std::byte* next = bytes;
  WeightSource source{.columns = kColumns};
  source.parts = {{DType::kF32, kRows, bytes},
                  {DType::kF32, kMore, bytes + kRows * kColumns * static_cast<int64_t>(sizeof(float))}};
  source.done_with = [&](const std::byte* begin, int64_t count) {
    EXPECT_EQ(begin, next);
    next = begin + count;
    ++calls;
  };
  const auto weight = backend->make_weight(source);
  EXPECT_EQ(next, bytes + values.size() * sizeof(float));
  EXPECT_GE(calls, 3);
}

// The same weights rounded to 16 bits give nearly the same logits, by either policy.
TEST(DecoderLoadTest, SixteenBitWeightsCompute) {
  const ModelFolder original("qwen3");
  const std::string bytes = read_file(golden_models() / "qwen3" / "model.safetensors");
  for (const bool bf16 : {false, true}) {
    uint64_t length;
    std::memcpy(&length, bytes.data(), sizeof(length));
    Json header = parse_json(std::string_view(bytes).substr(8, length), "header");
    std::string data;
    for (auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      const auto from = entry["data_offsets"][0].get<size_t>(), to = entry["data_offsets"][1].get<size_t>();
      const size_t begin = data.size();
      for (size_t at = from; at < to; at += sizeof(float)) {
        float value;
        std::memcpy(&value, bytes.data() + 8 + length + at, sizeof(value));
        const uint16_t half = bf16 ? float_to_bf16(value) : float_to_f16(value);
        data.append(reinterpret_cast<const char*>(&half), sizeof(half));
      }
      entry["dtype"] = bf16 ? "BF16" : "F16";
      entry["data_offsets"] = {begin, data.size()};
    }
    const std::string text = dump_json(header);
    const uint64_t new_length = text.size();
    const std::string start(reinterpret_cast<const char*>(&new_length), sizeof(new_length));
    std::filesystem::remove(original.path() / "model.safetensors");
    testing::write_text(original.path() / "model.safetensors", start + text + data);
    const auto files = original.open();
    const auto backend = make_backend("cpu", {.threads = 1});
    const auto tokens = some_tokens(16);
    const auto exact = StepDriver(*Loaded("qwen3").decoder, 16).feed_in_chunks(tokens, 16);
    const auto rounded = StepDriver(*Decoder::load(*files, *backend), 16).feed_in_chunks(tokens, 16);
    double apart = 0, largest = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      apart = std::max(apart, static_cast<double>(std::abs(exact[i] - rounded[i])));
      largest = std::max(largest, static_cast<double>(std::abs(exact[i])));
    }
    // 8 bits of mantissa, some twenty roundings on the way: a few percent. 11 bits: an eighth of that.
    EXPECT_LT(apart, (bf16 ? 0.08 : 0.01) * largest);
    EXPECT_GT(apart, 1e-5 * largest);
  }
}

TEST(KvCacheTest, TellsWhatAPageTakes) {
  const Loaded model("llama", "reference");
  // 2 layers * 4 tokens * (keys and values) * 2 heads * 8 * 2 bytes
  const KvCache::PageBytes bytes =
      KvCache::bytes_per_page(*model.backend, model.decoder->config(), 4, DType::kF16);
  EXPECT_EQ(bytes.full, 512u);
  EXPECT_EQ(bytes.sliding, 0u);
  const KvCache cache(*model.backend, model.decoder->config(), 3, 4, DType::kF16);
  EXPECT_EQ(cache.pages(), 3);
  EXPECT_EQ(cache.page_tokens(), 4);
}

}  // namespace
}  // namespace qiao
