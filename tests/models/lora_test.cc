// LoRA adapters against PEFT on Transformers (tests/golden/make_lora.py): each kind of file on each kind of
// base.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "models/logits.h"
#include "models/lora_files.h"
#include "models/model_folder.h"
#include "models/shards.h"
#include "models/spread_decoder.h"
#include "models/step_driver.h"

namespace qiao {
namespace {

using testing::golden_models;
using testing::ModelFolder;
using testing::read_floats;
using testing::StepDriver;
using testing::worst_position;

std::filesystem::path golden_lora() { return std::filesystem::path(QIAO_TEST_DATA) / "golden" / "lora"; }

struct LoraCase {
  std::string name, folder, config, gguf, adapter, expected, chip;
  std::vector<int32_t> prompt;
  int64_t context = 0;
};

void PrintTo(const LoraCase& test, std::ostream* out) { *out << test.name; }

std::vector<LoraCase> lora_cases() {
  std::vector<LoraCase> cases;
  for (const Json& entry : parse_json(read_file(golden_lora() / "cases.json"), "cases.json")) {
    for (const std::string chip : {"reference", "cpu"}) {
      for (const std::string adapter : {"adapter", "gguf_adapter"}) {
        for (const std::string base : {"", "gguf"}) {
          if (!entry.contains(adapter) || (!base.empty() && !entry.contains(base))) continue;
          LoraCase test;
          test.name =
              fmt::format("{}_{}_on_{}_{}", entry.at("name").get<std::string>(),
                          adapter == "adapter" ? "peft" : "gguf", base.empty() ? "directory" : "gguf", chip);
          test.folder = entry.at("folder").get<std::string>();
          test.config = entry.at("config").get<std::string>();
          if (!base.empty()) test.gguf = entry.at(base).get<std::string>();
          test.adapter = entry.at(adapter).get<std::string>();
          test.expected = entry.at("expected").get<std::string>();
          test.chip = chip;
          test.prompt = entry.at("prompt").get<std::vector<int32_t>>();
          test.context = entry.at("context").get<int64_t>();
          cases.push_back(test);
        }
      }
    }
  }
  return cases;
}

class LoraParityTest : public ::testing::TestWithParam<LoraCase> {};

TEST_P(LoraParityTest, LogitsArePefts) {
  const LoraCase& test = GetParam();
  const ModelFolder folder(test.folder, test.config);
  const auto files =
      test.gguf.empty() ? folder.open() : ModelFiles::open(golden_models() / test.folder / test.gguf);
  const auto backend = make_backend(test.chip, {.threads = 1});
  const auto decoder =
      Decoder::load(*files, *backend, {.compute = DecoderOptions::Policy::kF32, .context = test.context});
  const auto vocabulary = static_cast<size_t>(decoder->config().vocabulary_size);
  const auto tokens = static_cast<int64_t>(test.prompt.size());
  const auto base = StepDriver(*decoder, tokens).feed_in_chunks(test.prompt, test.prompt.size());

  ASSERT_EQ(decoder->add_adapter(*LoraFiles::open(golden_lora() / test.adapter)), 0);
  const auto expected = read_floats(golden_lora() / test.expected);
  ASSERT_EQ(expected.size(), test.prompt.size() * vocabulary);
  std::vector<float> whole;
  for (const size_t chunk : {test.prompt.size(), size_t{1}, size_t{7}}) {
    StepDriver driver(*decoder, tokens);
    driver.adapter = 0;
    const auto got = driver.feed_in_chunks(test.prompt, chunk);
    EXPECT_LE(worst_position(expected, got, vocabulary), 1e-4) << "in chunks of " << chunk;
    if (whole.empty()) whole = got;
    EXPECT_EQ(std::memcmp(whole.data(), got.data(), got.size() * sizeof(float)), 0) << "chunks of " << chunk;
  }
  EXPECT_GT(worst_position(expected, base, vocabulary), 1e-2);  // the adapter changes something
  // A sequence without it is computed as before it was loaded.
  const auto without = StepDriver(*decoder, tokens).feed_in_chunks(test.prompt, 5);
  EXPECT_EQ(std::memcmp(base.data(), without.data(), base.size() * sizeof(float)), 0);
}

// The same where ranks have their rows of B, or their columns of A.
TEST_P(LoraParityTest, LogitsOfSeveralRanksArePefts) {
  const LoraCase& test = GetParam();
  const ModelFolder folder(test.folder, test.config);
  folder.open();  // writes its configuration
  const auto path = test.gguf.empty() ? folder.path() : golden_models() / test.folder / test.gguf;
  const DecoderConfig config = read_decoder_config(*ModelFiles::open(path), test.context);
  const auto expected = read_floats(golden_lora() / test.expected);
  for (const int size : {2, 4}) {
    if (!share_out(config, {}, 0, size)) continue;
    const testing::SpreadDecoder spread(path, size, test.chip,
                                        {.compute = DecoderOptions::Policy::kF32, .context = test.context},
                                        {golden_lora() / test.adapter});
    StepDriver driver(*spread, static_cast<int64_t>(test.prompt.size()));
    driver.adapter = 0;
    const auto got = driver.feed_in_chunks(test.prompt, 7);
    EXPECT_LE(worst_position(expected, got, static_cast<size_t>(config.vocabulary_size)), 1e-4) << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Adapters, LoraParityTest, ::testing::ValuesIn(lora_cases()), [](const auto& param) {
  std::string name = param.param.name;
  std::ranges::replace(name, '-', '_');
  return name;
});

// A step of sequences with different adapters: each row is what its sequence gives alone.
TEST(LoraStepTest, NeighboursKeepTheirOwnAdapters) {
  const ModelFolder folder("llama");
  const auto files = folder.open();
  const auto backend = make_backend("cpu", {.threads = 2});
  const auto decoder = Decoder::load(*files, *backend);
  for (const char* name : {"llama", "llama-patterns", "llama-one-layer"})
    decoder->add_adapter(*LoraFiles::open(golden_lora() / name));
  ASSERT_EQ(decoder->adapters(), 3);
  const std::vector<int32_t> adapters = {2, -1, 0, 0, 1, 2, -1};
  constexpr int64_t kPageTokens = 8;
  const auto sequences = static_cast<int64_t>(adapters.size());
  KvCache cache(*backend, decoder->config(), sequences, kPageTokens, DType::kF32);
  const auto workspace =
      decoder->make_workspace({.tokens = 64, .sequences = sequences, .outputs = 64}, cache);
  std::vector<int32_t> tokens, positions, slots, table, lengths, starts = {0}, rows;
  std::vector<std::vector<int32_t>> prompts;
  for (int32_t s = 0; s < sequences; ++s) {
    const int32_t length = 2 + s % 4;
    prompts.emplace_back();
    for (int32_t i = 0; i < length; ++i) {
      prompts.back().push_back((s * 13 + i * 7 + 3) % 96);
      positions.push_back(i);
      slots.push_back(static_cast<int32_t>(s * kPageTokens) + i);
    }
    tokens.insert(tokens.end(), prompts.back().begin(), prompts.back().end());
    table.push_back(s);
    lengths.push_back(length);
    starts.push_back(static_cast<int32_t>(tokens.size()));
    if (s != 3) rows.push_back(starts.back() - 1);  // of one sequence nothing is wanted
    if (s == 4) rows.insert(rows.end() - 1, starts.back() - 2);
  }
  StepBatch batch = {tokens, positions, slots, table, lengths, starts, rows};
  batch.adapters = adapters;
  const Decoder::Outputs outputs = decoder->forward(batch, cache, *workspace);
  std::vector<float> logits(rows.size() * 96);
  backend->download(logits.data(), outputs.logits.data, logits.size() * sizeof(float));
  for (size_t output = 0; output < rows.size(); ++output) {
    const auto after = std::upper_bound(starts.begin(), starts.end(), rows[output]);
    const auto s = static_cast<size_t>(after - starts.begin() - 1);
    StepDriver driver(*decoder, 8);
    driver.adapter = adapters[s];
    const int32_t row = rows[output] - starts[s];
    const auto alone = driver.feed(prompts[s], {&row, 1});
    EXPECT_EQ(std::memcmp(alone.data(), logits.data() + output * 96, 96 * sizeof(float)), 0)
        << "output " << output;
  }
  const std::vector<int32_t> wrong = {0, 0, 0, 0, 0, 0, 3};
  batch.adapters = wrong;
  try {
    decoder->forward(batch, cache, *workspace);
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("adapter 6 is 3; -1 to 2 was expected"));
  }
}

}  // namespace
}  // namespace qiao
