// What the trainer computes is what a server of the model it leaves computes, bit for bit.
#include <gtest/gtest.h>

#include <tuple>

#include "base/file.h"
#include "base/json.h"
#include "models/step_driver.h"
#include "train/golden_run.h"
#include "train/served_logprobs.h"

namespace qiao::train {
namespace {

class ServedAsTrainedTest : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(ServedAsTrainedTest, LossOfTheNextStepIsTheServersToTheBit) {
  const auto& [model, dtype] = GetParam();
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run", model);
  options.dtype = dtype;
  if (options.dtype == "bf16") {
    const std::filesystem::path init = folder.path() / "init";
    write_model(init, options.init, read_tensors(options.init / "model.safetensors"), DType::kBF16);
    options.init = init;
  }
  options.steps = 3;
  run(options);
  std::filesystem::copy(options.out / "model", folder.path() / "served");
  options.steps = 4, options.resume = true;
  const double trained = run(options).steps.at(0).loss;

  const std::shared_ptr<ModelFiles> files = ModelFiles::open(folder.path() / "served");
  const std::unique_ptr<Backend> backend = make_backend("auto", {.threads = 2});
  DecoderOptions load;
  load.quantize_f8 = options.dtype == "fp8";
  const std::unique_ptr<Decoder> decoder = Decoder::load(*files, *backend, load);
  const std::string data = read_file(golden() / "data.jsonl");
  std::vector<std::vector<int32_t>> rows;
  for (size_t begin = 0; begin < data.size(); begin = data.find('\n', begin) + 1) {
    rows.push_back(parse_json(std::string_view(data).substr(begin, data.find('\n', begin) - begin),
                              "data.jsonl")["tokens"]
                       .get<std::vector<int32_t>>());
  }
  for (const size_t chunk : {1, 7, 32}) {
    double sum = 0;
    int64_t labels = 0;
    for (size_t row = 12; row < 16; ++row) {  // of the fourth step
      testing::StepDriver driver(*decoder, 32);
      std::vector<float> logits = driver.feed_in_chunks(rows[row], chunk);
      logits.resize(logits.size() / 32 * 31);
      for (const float value : served_logprobs(*backend, logits, std::span(rows[row]).subspan(1))) {
        sum -= static_cast<double>(value);
        ++labels;
      }
    }
    EXPECT_EQ(sum / static_cast<double>(labels), trained) << "in chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ServedAsTrainedTest,
                         ::testing::Combine(::testing::Values("llama", "gemma3", "qwen3-moe", "hunyuan-moe"),
                                            ::testing::Values("f32", "bf16")));
INSTANTIATE_TEST_SUITE_P(InFp8, ServedAsTrainedTest, ::testing::Values(std::tuple("fp8", "fp8")));

}  // namespace
}  // namespace qiao::train
