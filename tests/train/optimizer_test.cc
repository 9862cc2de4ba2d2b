// Optimizers beside AdamW with F32 moments: parity with PyTorch's, what they keep, and that runs go on with
// them.
#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/file.h"
#include "base/json.h"
#include "support/expect_error.h"
#include "train/golden_run.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

class MuonParityTest : public ::testing::TestWithParam<std::pair<const char*, double>> {};

// As AdamW is held to PyTorch (parity_test.cc).
TEST_P(MuonParityTest, FollowsPyTorchsFloat64AsItsOwnFloat32Does) {
  const auto& [adjustment, rate] = GetParam();
  const testing::TemporaryDirectory folder;
  const Json expected = parse_json(read_file(golden() / "llama" / "muon.json"), "muon.json")[adjustment];
  TrainOptions options = as_pytorch(folder.path());
  options.optimizer.kind = "muon";
  options.optimizer.learning_rate = rate;
  options.optimizer.adam_learning_rate = 1e-3;
  options.optimizer.muon_lr_adjust = adjustment;
  for (const int size : {1, 2, 4}) {  // ranks that train one model
    SCOPED_TRACE(size);
    options.out = folder.path() / std::to_string(size);
    options.tensor_parallel = size, options.virtual_ranks = 1;
    const Recorder ours = run_in_threads(options, size);
    ASSERT_EQ(ours.steps.size(), 50u);
    double gap[2] = {}, theirs[2] = {};
    for (size_t i = 0; i < 50; ++i) {
      const double values[2] = {ours.steps[i].loss, ours.steps[i].gradient_norm};
      for (size_t k = 0; k < 2; ++k) {
        const double exact = expected["float64"][i][k];
        gap[k] = std::max(gap[k], std::abs(values[k] / exact - 1));
        theirs[k] = std::max(theirs[k], std::abs(expected["float32"][i][k].get<double>() / exact - 1));
      }
    }
    EXPECT_LE(gap[0], 2 * theirs[0]);
    EXPECT_LE(gap[1], 2 * theirs[1]);
    EXPECT_LT(ours.steps.back().loss, ours.steps.front().loss - 0.5);
  }
}

INSTANTIATE_TEST_SUITE_P(Adjustments, MuonParityTest,
                         ::testing::Values(std::pair{"original", 0.01}, std::pair{"match_rms_adamw", 1e-3}));

struct Kept {
  const char* optimizer;
  const char* states;
};

class OptimizerStatesTest : public ::testing::TestWithParam<Kept> {
 protected:
  TrainOptions options(const char* name, const char* model = "llama") const {
    TrainOptions made = as_pytorch(folder_.path() / name, model);
    made.optimizer.kind = GetParam().optimizer;
    made.optimizer.adam_states = GetParam().states;
    return made;
  }
  const testing::TemporaryDirectory folder_;
};

TEST_P(OptimizerStatesTest, ARunThatStopsGoesOnToTheSameBytes) {
  for (const char* model : {"llama", "qwen3-moe"}) {
    const std::string name = model;
    TrainOptions whole = options((name + "-whole").c_str(), model);
    TrainOptions parts = options((name + "-parts").c_str(), model);
    whole.steps = parts.steps = 8;
    run(whole);
    Recorder first;
    first.stop_after = 3;
    train(parts, first);
    parts.resume = true;
    EXPECT_EQ(run(parts).steps.front().step, 4);
    for (const char* file : {"model/model.safetensors", "checkpoints/step-00000008/state.safetensors"})
      EXPECT_TRUE(read_file(whole.out / file) == read_file(parts.out / file)) << model << " " << file;
  }
}

TEST_P(OptimizerStatesTest, Learns) {
  TrainOptions made = options("run");
  if (made.optimizer.kind == "muon")
    made.optimizer.learning_rate = 0.01, made.optimizer.adam_learning_rate = 1e-3;
  const Recorder recorder = run(made);
  EXPECT_LT(recorder.steps.back().loss, recorder.steps.front().loss - 0.5);
}

TEST_P(OptimizerStatesTest, ACheckpointHoldsThemAsTheyAre) {
  TrainOptions made = options("run");
  made.steps = 1;
  run(made);
  const SafetensorsFiles file = open_safetensors(
      made.out / "checkpoints" / "step-00000001" / "state.safetensors", TypePolicy::kRefuseUnsupported);
  const auto find = [&](const std::string& name) {
    const auto found = std::ranges::find(file.tensors, name, &TensorInfo::name);
    return found == file.tensors.end() ? nullptr : &*found;
  };
  const std::string states = GetParam().states;
  const DType large = states == "8bit" ? DType::kU8 : states == "bf16" ? DType::kBF16 : DType::kF32;
  const auto expect_adamw = [&](const std::string& name, DType dtype, std::vector<int64_t> shape) {
    for (const char* moment : {"first_moment", "second_moment"}) {
      const TensorInfo* info = find(fmt::format("{}.{}", moment, name));
      ASSERT_NE(info, nullptr) << moment << " " << name;
      EXPECT_EQ(info->dtype, dtype) << name;
      EXPECT_EQ(info->shape, shape) << name;
      const TensorInfo* scales = find(fmt::format("{}_scales.{}", moment, name));
      EXPECT_EQ(scales != nullptr, dtype == DType::kU8);
      if (scales != nullptr) {
        EXPECT_EQ(scales->shape, (std::vector<int64_t>{1, 96 * 48 / 256}));
      }
    }
  };
  expect_adamw("model.embed_tokens.weight", large, {96, 48});  // 4608 numbers: above the least
  expect_adamw("lm_head.weight", large, {96, 48});
  expect_adamw("model.norm.weight", DType::kF32, {48});
  const std::string matrix = "model.layers.1.mlp.up_proj.weight";
  if (std::string(GetParam().optimizer) == "muon") {
    const TensorInfo* momentum = find("momentum." + matrix);
    ASSERT_NE(momentum, nullptr);
    EXPECT_EQ(momentum->dtype, DType::kF32);
    EXPECT_EQ(find("first_moment." + matrix), nullptr);
    EXPECT_EQ(find("momentum.model.layers.0.self_attn.q_proj.bias"), nullptr);
  } else {
    expect_adamw(matrix, large, {96, 48});
    expect_adamw("model.layers.0.self_attn.k_proj.weight", DType::kF32, {32, 48});  // 1536 numbers
    EXPECT_EQ(find("momentum." + matrix), nullptr);
  }
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerStatesTest,
                         ::testing::Values(Kept{"adamw", "f32"}, Kept{"adamw", "bf16"}, Kept{"adamw", "8bit"},
                                           Kept{"muon", "f32"}, Kept{"muon", "8bit"}),
                         [](const auto& info) {
                           return std::string(info.param.optimizer) + "_" + info.param.states;
                         });

TEST(OptimizerTest, ARunDoesNotGoOnWithOtherStates) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.steps = 1;
  run(options);
  options.steps = 2, options.resume = true;
  options.optimizer.adam_states = "bf16";
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "tensor first_moment.", "is F32[", "BF16[", "--adam-states");
  options.optimizer.adam_states = "f32";
  options.optimizer.kind = "muon";
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "tensor momentum.", "is not in it", "--optimizer");
}

TEST(OptimizerTest, FewerBitsTakeLessMemory) {
  const testing::TemporaryDirectory folder;
  const auto bytes = [&](const char* states) {
    TrainOptions options = as_pytorch(folder.path() / "never");
    options.optimizer.adam_states = states;
    options.dry_run = true;
    return run(options).report.memory.parameters;
  };
  EXPECT_LT(bytes("bf16"), bytes("f32"));
  EXPECT_LT(bytes("8bit"), bytes("bf16"));
}

TEST(OptimizerTest, WrongSettingsNameThemselves) {
  const auto with = [](auto change) {
    OptimizerSettings settings;
    change(settings);
    return settings;
  };
  using S = OptimizerSettings;
  EXPECT_QIAO_ERROR(check_optimizer(with([](S& s) { s.kind = "sgd"; })), kInvalidInput, "--optimizer is sgd");
  EXPECT_QIAO_ERROR(check_optimizer(with([](S& s) { s.adam_states = "4bit"; })), kInvalidInput,
                    "--adam-states is 4bit", "f32, bf16 or 8bit");
  EXPECT_QIAO_ERROR(check_optimizer(with([](S& s) { s.adam_learning_rate = 1e-3; })), kInvalidInput,
                    "--adam-lr is 0.001", "--optimizer muon");
  EXPECT_QIAO_ERROR(check_optimizer(with([](S& s) { s.muon_lr_adjust = "none"; })), kInvalidInput,
                    "--muon-lr-adjust is none");
  EXPECT_QIAO_ERROR(check_optimizer(with([](S& s) { s.muon_momentum = 1; })), kInvalidInput,
                    "--muon-momentum is 1");
  EXPECT_EQ(optimizer_warning(with([](S& s) { s.adam_states = "bf16"; })), "");
  EXPECT_NE(optimizer_warning(with([](S& s) { s.adam_states = "bf16", s.beta2 = 0.999; })), "");
}

}  // namespace
}  // namespace qiao::train
