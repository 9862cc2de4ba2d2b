// Experts stacked in one tensor train as those that have a tensor each.
#include <gtest/gtest.h>

#include <map>

#include "train/golden_run.h"

namespace qiao::train {
namespace {

constexpr const char* kModel = "model.safetensors";
constexpr int64_t kExperts = 5, kInner = 24, kWidth = 48;  // of golden/training/qwen3-moe

// mlp.experts.gate_up_proj [E, 2F, C] and mlp.experts.down_proj [E, C, F] in place of each expert's own.
std::vector<NamedValues> stacked(const std::vector<NamedValues>& single) {
  std::map<std::string, const NamedValues*> by_name;
  for (const NamedValues& tensor : single) by_name[tensor.name] = &tensor;
  std::vector<NamedValues> made;
  for (const NamedValues& tensor : single)
    if (tensor.name.find(".experts.") == std::string::npos) made.push_back(tensor);
  for (const std::string layer : {"model.layers.0.mlp.experts.", "model.layers.1.mlp.experts."}) {
    NamedValues both{layer + "gate_up_proj", {kExperts, 2 * kInner, kWidth}, {}};
    NamedValues down{layer + "down_proj", {kExperts, kWidth, kInner}, {}};
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      const auto append = [&](NamedValues& to, const char* name) {
        const auto& from = by_name.at(layer + std::to_string(expert) + name)->values;
        to.values.insert(to.values.end(), from.begin(), from.end());
      };
      append(both, ".gate_proj.weight");
      append(both, ".up_proj.weight");
      append(down, ".down_proj.weight");
    }
    made.push_back(std::move(both));
    made.push_back(std::move(down));
  }
  return made;
}

std::map<std::string, std::vector<float>> values_by_name(const std::vector<NamedValues>& tensors) {
  std::map<std::string, std::vector<float>> values;
  for (const NamedValues& tensor : tensors) values[tensor.name] = tensor.values;
  return values;
}

TEST(ExpertsTest, StackedOnesTrainAsThoseOfATensorEach) {
  const testing::TemporaryDirectory folder;
  TrainOptions single = as_pytorch(folder.path() / "single", "qwen3-moe"),
               together = as_pytorch(folder.path() / "together", "qwen3-moe");
  together.init = folder.path() / "init";
  write_model(together.init, single.init, stacked(read_tensors(single.init / kModel)), DType::kF32);
  single.steps = 6, together.steps = 3;
  const Recorder one = run(single);
  run(together);
  together.steps = 6, together.resume = true;  // through a checkpoint
  const Recorder other = run(together);
  ASSERT_EQ(other.steps.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(one.steps[3 + i].loss, other.steps[i].loss);
  const auto expected = values_by_name(stacked(read_tensors(single.out / "model" / kModel)));
  const auto actual = values_by_name(read_tensors(together.out / "model" / kModel));
  EXPECT_EQ(expected, actual);
}

}  // namespace
}  // namespace qiao::train
