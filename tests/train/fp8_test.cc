// Training in FP8 beside PyTorch with operands rounded in the same way (tests/golden/make_training_fp8.py).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/file.h"
#include "base/json.h"
#include "formats/model_files.h"
#include "support/expect_error.h"
#include "train/golden_run.h"

namespace qiao::train {
namespace {

struct Rms {  // of relative differences
  double loss = 0, norm = 0;
};

class TrainFp8Test : public ::testing::Test {
 protected:
  const testing::TemporaryDirectory folder_;
  const Json expected_ = parse_json(read_file(golden() / "fp8" / "expected.json"), "expected.json");

  TrainOptions options(const std::string& name, const std::string& dtype = "fp8") const {
    TrainOptions made = as_pytorch(folder_.path() / name, "fp8");
    made.dtype = dtype;
    return made;
  }
  static Rms apart(const Json& a, const Json& b) {
    Rms sum;
    for (size_t i = 0; i < a.size(); ++i) {
      sum.loss += std::pow(a[i][0].get<double>() / b[i][0].get<double>() - 1, 2);
      sum.norm += std::pow(a[i][1].get<double>() / b[i][1].get<double>() - 1, 2);
    }
    const auto count = static_cast<double>(a.size());
    return {std::sqrt(sum.loss / count), std::sqrt(sum.norm / count)};
  }
};

TEST_F(TrainFp8Test, FollowsPyTorchsFloat64AsItsOwnFp8Does) {
  const Recorder ours = run(options("run"));
  ASSERT_EQ(ours.steps.size(), 50u);
  Json steps = Json::array();
  for (const StepRecord& step : ours.steps) steps.push_back({step.loss, step.gradient_norm});
  const Json& exact = expected_["float64"];
  const Rms gap = apart(steps, exact), theirs = apart(expected_["fp8"], exact);
  EXPECT_LE(gap.loss, 2 * theirs.loss);
  EXPECT_LE(gap.norm, 2 * theirs.norm);
  EXPECT_GT(gap.loss, 10 * apart(expected_["float32"], exact).loss);  // it does round
  EXPECT_LT(ours.steps.back().loss, ours.steps.front().loss - 0.5);
}

// Fused projections of 128, 64 and 64 rows; down_proj, whose rows are of 144, stays BF16.
TEST_F(TrainFp8Test, TellsWhichMatricesAreInIt) {
  TrainOptions asked = options("dry");
  asked.dry_run = true;
  const TrainReport report = run(asked).report;
  EXPECT_EQ(report.f8_matrices, 12);
  EXPECT_EQ(report.unfit_matrices, (std::vector<std::string>{"model.layers.0.mlp.down_proj.weight",
                                                             "model.layers.1.mlp.down_proj.weight"}));
  EXPECT_TRUE(run(options("bf16", "bf16")).report.unfit_matrices.empty());
}

TEST_F(TrainFp8Test, RefusesAModelWithoutAMatrixThatFits) {
  TrainOptions asked = as_pytorch(folder_.path() / "run", "llama");
  asked.dtype = "fp8";
  EXPECT_QIAO_ERROR(run(asked), kUnsupported, "none of its layers' matrices can be quantized to FP8",
                    "rows of whole blocks of 128");
}

// Killed and gone on with: the bytes of a run that was not.
TEST_F(TrainFp8Test, ARunGoesOnToTheSameBytes) {
  TrainOptions whole = options("whole"), parts = options("parts");
  whole.steps = parts.steps = 6;
  whole.checkpoint_every = parts.checkpoint_every = 3;
  run(whole);
  Recorder first;
  first.stop_after = 3;
  train(parts, first);
  parts.resume = true;
  run(parts);
  EXPECT_EQ(model_bytes(whole), model_bytes(parts));
}

// An adapter on a base that is quantized as it is loaded, and on checkpoints that are in FP8: with scales of
// squares the way back is in E4M3, too, with those of rows in F32.
TEST_F(TrainFp8Test, AdaptersLearnOnABaseInIt) {
  for (const char* base : {"training/fp8/init", "fp8/llama-block", "fp8/llama-channel"}) {
    TrainOptions asked = options(std::filesystem::path(base).filename().string());
    asked.init = golden().parent_path() / base;
    asked.lora.rank = 4;
    asked.optimizer.learning_rate = 1e-2;
    asked.steps = 50;
    const Recorder ours = run(asked);
    EXPECT_GT(ours.report.f8_matrices, 6) << base;
    EXPECT_LT(ours.steps.back().loss, ours.steps.front().loss - 0.2) << base;
  }
}

// All of a checkpoint in FP8, from its numbers times its scales: the first loss is that of PyTorch's logits
// of them, and what is written is BF16.
TEST_F(TrainFp8Test, ACheckpointInItIsTrainedInFull) {
  for (const std::string name :
       {"llama-block", "llama-tensor", "llama-channel", "llama-mx", "qwen3-moe-block"}) {
    const std::filesystem::path base = golden().parent_path() / "fp8" / name, init = folder_.path() / name;
    std::filesystem::copy(base, init);
    write_file_atomically(init / "hf_quant_config.json", "{}");
    const std::string text = read_file(base / "prompt.json");
    const auto prompt = parse_json(text, "prompt.json").get<std::vector<size_t>>();
    write_file_atomically(folder_.path() / "prompt.jsonl", dump_json({{"tokens", prompt}}) + "\n");
    TrainOptions asked = options(name + "-run", "f32");
    asked.init = init;
    asked.data.files = {folder_.path() / "prompt.jsonl"};
    asked.data.sequence = static_cast<int64_t>(prompt.size());
    asked.batch = 1;
    asked.steps = 20;
    asked.optimizer.learning_rate = 1e-2;
    const Recorder ours = run(asked);
    const std::string raw = read_file(base / "expected.f32");
    std::vector<float> logits(raw.size() / sizeof(float));
    std::memcpy(logits.data(), raw.data(), raw.size());
    const size_t vocabulary = logits.size() / prompt.size();
    double loss = 0;
    for (size_t i = 0; i + 1 < prompt.size(); ++i) {
      const auto row = std::span(logits).subspan(i * vocabulary, vocabulary);
      double sum = 0;
      for (const float logit : row) sum += std::exp(static_cast<double>(logit));
      loss += (std::log(sum) - row[prompt[i + 1]]) / static_cast<double>(prompt.size() - 1);
    }
    EXPECT_NEAR(ours.steps.front().loss, loss, 1e-4) << name;
    EXPECT_LT(ours.steps.back().loss, loss - 0.2) << name;
    const auto files = ModelFiles::open(asked.out / "model");
    EXPECT_FALSE(files->config().contains("quantization_config"));
    EXPECT_FALSE(std::filesystem::exists(asked.out / "model" / "hf_quant_config.json"));
    EXPECT_EQ(files->find("model.layers.0.self_attn.q_proj.weight")->dtype, DType::kBF16);
    EXPECT_EQ(files->find("model.norm.weight")->dtype, DType::kF32);  // as it was
  }
}

// And in the ways that round: it is quantized anew from BF16.
TEST_F(TrainFp8Test, ACheckpointInItLearnsInIt) {
  for (const char* dtype : {"bf16", "fp8"}) {
    TrainOptions asked = options(dtype, dtype);
    asked.init = golden().parent_path() / "fp8" / "llama-block";
    const Recorder ours = run(asked);
    EXPECT_EQ(ours.report.f8_matrices, asked.dtype == "fp8" ? 7 : 0);
    EXPECT_LT(ours.steps.back().loss, ours.steps.front().loss - 0.5) << dtype;
  }
}

// A mixture from drawn weights, whose experts' matrices are stacked.
TEST_F(TrainFp8Test, ExpertsLearnInIt) {
  Json config = parse_json(read_file(golden().parent_path() / "fp8" / "qwen3-moe-block" / "config.json"),
                           "config.json");
  config.erase("quantization_config");
  config["initializer_range"] = 0.08;
  std::filesystem::create_directories(folder_.path() / "init");
  write_file_atomically(folder_.path() / "init" / "config.json", dump_json(config));
  std::vector<double> last;
  for (const char* dtype : {"bf16", "fp8"}) {
    TrainOptions asked = options(dtype, dtype);
    asked.init = folder_.path() / "init";
    const Recorder ours = run(asked);
    EXPECT_EQ(ours.report.f8_matrices > 0, asked.dtype == "fp8");
    EXPECT_LT(ours.steps.back().loss, ours.steps.front().loss - 0.5) << dtype;
    last.push_back(ours.steps.back().loss);
  }
  EXPECT_NE(last[0], last[1]);
}

}  // namespace
}  // namespace qiao::train
