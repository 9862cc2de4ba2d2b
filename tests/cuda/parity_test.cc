// Families on the CUDA chip against Transformers: the logits of each position, whole and in chunks, as
// tests/models/parity_test.cc has them for every family on the CPU.
#include <gtest/gtest.h>

#include <cstring>

#include "backend/backend.h"
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

class CudaParityTest : public ::testing::TestWithParam<const char*> {};

TEST_P(CudaParityTest, LogitsAreTransformers) {
  const Json list = parse_json(read_file(golden_models() / "cases.json"), "cases.json");
  for (const Json& entry : list) {
    if (entry.at("name").get<std::string>() != GetParam()) continue;
    const auto folder = entry.at("folder").get<std::string>();
    const auto prompt = entry.at("prompt").get<std::vector<int32_t>>();
    const auto expected = read_floats(golden_models() / folder / entry.at("expected").get<std::string>());
    const auto backend = make_backend("cuda");
    const auto files = ModelFolder(folder, entry.at("config").get<std::string>()).open();
    const auto decoder = Decoder::load(
        *files, *backend,
        {.compute = DecoderOptions::Policy::kF32, .context = entry.at("context").get<int64_t>()});
    const auto vocabulary = static_cast<size_t>(decoder->config().vocabulary_size);
    std::vector<float> whole;
    for (const size_t chunk : {prompt.size(), size_t{3}}) {
      const auto got =
          StepDriver(*decoder, static_cast<int64_t>(prompt.size())).feed_in_chunks(prompt, chunk);
      ASSERT_EQ(got.size(), expected.size());
      EXPECT_LE(worst_position(expected, got, vocabulary), 1e-4) << "in chunks of " << chunk;
      if (whole.empty()) whole = got;
      EXPECT_EQ(std::memcmp(whole.data(), got.data(), got.size() * sizeof(float)), 0)
          << "chunks of " << chunk;
    }
    return;
  }
  FAIL() << "cases.json has no " << GetParam();
}

INSTANTIATE_TEST_SUITE_P(Families, CudaParityTest,
                         ::testing::Values("llama", "gemma2", "gemma3", "qwen3", "qwen3-moe", "hunyuan-moe"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace qiao
