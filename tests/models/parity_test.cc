// Every family against Transformers: tiny random models, the logits of each position of a prompt longer than
// any window (tests/golden/make_models.py).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backend/backend.h"
#include "models/golden_cases.h"
#include "models/logits.h"
#include "models/model_folder.h"
#include "models/step_driver.h"

namespace qiao {
namespace {

using testing::golden_models;
using testing::ModelFolder;
using testing::read_floats;
using testing::StepDriver;
using testing::worst_position;

struct Case : testing::GoldenCase {
  std::string chip;
};

void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const testing::GoldenCase& golden : testing::golden_cases()) {
    for (const std::string chip : {"reference", "cpu"}) {
      cases.push_back({golden, chip});
      cases.back().name += "-" + chip;
    }
  }
  return cases;
}

class ParityTest : public ::testing::TestWithParam<Case> {};

TEST_P(ParityTest, LogitsAreTransformers) {
  const Case& test = GetParam();
  const ModelFolder folder(test.folder, test.config);
  const auto files =
      test.gguf.empty() ? folder.open() : ModelFiles::open(golden_models() / test.folder / test.gguf);
  const auto backend = make_backend(test.chip, {.threads = 1});
  const auto decoder =
      Decoder::load(*files, *backend, {.compute = DecoderOptions::Policy::kF32, .context = test.context});
  const auto expected = read_floats(golden_models() / test.folder / test.expected);
  const auto vocabulary = static_cast<size_t>(decoder->config().vocabulary_size);
  ASSERT_EQ(expected.size(), test.prompt.size() * vocabulary);
  const auto tokens = static_cast<int64_t>(test.prompt.size());
  std::vector<float> whole;
  for (const size_t chunk : {test.prompt.size(), size_t{1}, size_t{3}, size_t{7}}) {
    const auto got = StepDriver(*decoder, tokens).feed_in_chunks(test.prompt, chunk);
    ASSERT_EQ(got.size(), expected.size());
    EXPECT_LE(worst_position(expected, got, vocabulary), 1e-4) << "in chunks of " << chunk;
    if (whole.empty()) whole = got;
    // Batch invariance: chunks change no bit.
    EXPECT_EQ(std::memcmp(whole.data(), got.data(), got.size() * sizeof(float)), 0) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ParityTest, ::testing::ValuesIn(all_cases()), [](const auto& param) {
  std::string name = param.param.name;
  std::ranges::replace(name, '-', '_');
  return name;
});

// The measure of the tests above must catch what it is for.
TEST(ParityMeasureTest, SeesZerosNansAndSwappedRows) {
  const std::vector<float> rows = {1, -2, 3, 4, 5, -6};
  EXPECT_EQ(worst_position(rows, rows, 3), 0.0);
  EXPECT_GT(worst_position(rows, {0, 0, 0, 0, 0, 0}, 3), 0.5);
  EXPECT_GT(worst_position(rows, {4, 5, -6, 1, -2, 3}, 3), 0.5);
  EXPECT_GT(worst_position(rows, {1, -2, 3, 4, NAN, -6}, 3), 0.5);
}

}  // namespace
}  // namespace qiao
