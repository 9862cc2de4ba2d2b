// What training computes on the CUDA chip is what serving over pages of packed_kv_dtype() does, bit for bit:
// in BF16 both round keys, values, queries and weights.
#include "models/decoder_training.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/json.h"
#include "models/step_driver.h"
#include "train/golden_run.h"
#include "train/served_logprobs.h"

namespace qiao::train {
namespace {

class CudaTrainingTest : public ::testing::TestWithParam<DType> {};

TEST_P(CudaTrainingTest, LogProbabilitiesAreTheServers) {
  const std::shared_ptr<ModelFiles> files = ModelFiles::open(golden() / "llama" / "init");
  const std::unique_ptr<Backend> backend = make_backend("cuda");
  DecoderOptions load;
  load.float_weights = GetParam();
  const std::unique_ptr<Decoder> decoder = Decoder::load(*files, *backend, load);
  EXPECT_EQ(decoder->packed_kv_dtype(), GetParam());
  const std::string data = read_file(golden() / "data.jsonl");
  const auto tokens = parse_json(std::string_view(data).substr(0, data.find('\n')), "data.jsonl")["tokens"]
                          .get<std::vector<int32_t>>();
  const auto count = static_cast<int32_t>(tokens.size());
  std::vector<int32_t> positions(tokens.size()), labels(tokens.begin() + 1, tokens.end());
  std::iota(positions.begin(), positions.end(), 0);
  labels.push_back(-1);
  DecoderTraining passes(*decoder, count, 1);
  const std::span<const float> trained =
      passes.forward({tokens, positions, labels, std::vector<int32_t>{0, count}});
  for (const size_t chunk : {size_t{7}, tokens.size()}) {
    testing::StepDriver driver(*decoder, count);
    std::vector<float> logits = driver.feed_in_chunks(tokens, chunk);
    logits.resize(logits.size() / tokens.size() * (tokens.size() - 1));
    const std::vector<float> served = served_logprobs(*backend, logits, std::span(tokens).subspan(1));
    EXPECT_EQ(served, std::vector<float>(trained.begin(), trained.end() - 1)) << "in chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, CudaTrainingTest, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(traits(info.param).name); });

}  // namespace
}  // namespace qiao::train
