// What the trainer computes is what a server of the model it leaves computes, bit for bit.
#include <gtest/gtest.h>

#include <cstring>
#include <tuple>

#include "base/file.h"
#include "base/json.h"
#include "models/step_driver.h"
#include "train/golden_run.h"

namespace qiao::train {
namespace {

class ServedAsTrainedTest : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

// A tensor in the chip's memory, with the buffer it owns.
class OnChip {
 public:
  OnChip(Backend& backend, DType dtype, std::initializer_list<int64_t> shape)
      : backend_(backend), tensor_(nullptr, dtype, shape) {
    buffer_ = backend.allocate(static_cast<size_t>(tensor_.bytes()));
    tensor_.data = buffer_.data();
  }
  operator Tensor() const { return tensor_; }
  void upload(const void* from) { backend_.upload(tensor_.data, from, static_cast<size_t>(tensor_.bytes())); }
  template <typename T>
  std::vector<T> list() {
    std::vector<T> values(static_cast<size_t>(tensor_.elements()));
    backend_.download(values.data(), tensor_.data, static_cast<size_t>(tensor_.bytes()));
    return values;
  }

 private:
  Backend& backend_;
  Buffer buffer_;
  Tensor tensor_;
};

// log p of ids, as a server tells them beside its tokens.
std::vector<float> served_logprobs(Backend& backend, const std::vector<float>& logits,
                                   std::span<const int32_t> ids) {
  const auto rows = std::ssize(ids), vocabulary = std::ssize(logits) / rows;
  OnChip on_chip(backend, DType::kF32, {rows, vocabulary}), top(backend, DType::kF32, {rows, vocabulary});
  OnChip greedy(backend, DType::kU8, {rows, static_cast<int64_t>(sizeof(SampleRow))});
  OnChip drawn(backend, DType::kI32, {rows}), top_ids(backend, DType::kI32, {rows, vocabulary});
  on_chip.upload(logits.data());
  greedy.upload(std::vector<SampleRow>(ids.size()).data());
  Sample op;
  op.logits = on_chip, op.rows = greedy, op.ids = drawn, op.top_ids = top_ids, op.top_log_probabilities = top;
  OnChip workspace(backend, DType::kU8,
                   {static_cast<int64_t>(std::max<size_t>(backend.workspace_bytes(op), 64))});
  op.workspace = workspace;
  backend.sample(op);
  const auto order = top_ids.list<int32_t>();
  const auto values = top.list<float>();
  std::vector<float> result;
  for (size_t row = 0; row < ids.size(); ++row) {
    const auto begin = order.begin() + static_cast<int64_t>(row) * vocabulary;
    const auto found = std::find(begin, begin + vocabulary, ids[row]);
    result.push_back(values[static_cast<size_t>(found - order.begin())]);
  }
  return result;
}

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
