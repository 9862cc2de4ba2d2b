// Training in FP8 beside PyTorch with operands rounded in the same way (tests/golden/make_training_fp8.py).
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/file.h"
#include "base/json.h"
#include "models/decoder_training.h"
#include "support/expect_error.h"
#include "train/golden_run.h"
#include "train/parameters.h"

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

// The first step's gradients: nearer to PyTorch's of the same roundings than those are to float64's, of the
// last layer twice as near, so that operands that are rounded otherwise show. (Attention's way back is in
// BF16 here; on the way to the first layer it makes more and more numbers of E4M3 other ones.)
TEST_F(TrainFp8Test, GradientsAreThoseOfRoundedOperands) {
  const std::shared_ptr<ModelFiles> files = ModelFiles::open(golden() / "fp8" / "init");
  const std::unique_ptr<Backend> backend = make_backend("auto", {.threads = 2});
  Parameters parameters(*backend, Parameters::SmallTensors::kAsInFile);
  DecoderOptions load;
  load.float_weights = DType::kF32;  // but for the products in FP8 nearly all in F32
  load.quantize_f8 = true;
  load.laid_out = [&](const LaidOutTensor& tensor) { parameters.add(tensor); };
  const std::unique_ptr<Decoder> decoder = Decoder::load(*files, *backend, load);
  parameters.prepare(*files);
  DecoderTraining passes(*decoder, 128, 4);
  std::vector<int32_t> tokens, positions, labels, starts = {0};
  const std::string data = read_file(golden() / "data.jsonl");
  for (size_t begin = 0; starts.size() < 5; begin = data.find('\n', begin) + 1) {
    const auto ids = parse_json(std::string_view(data).substr(begin, data.find('\n', begin) - begin),
                                "data.jsonl")["tokens"]
                         .get<std::vector<int32_t>>();
    for (size_t i = 0; i < ids.size(); ++i) {
      tokens.push_back(ids[i]);
      positions.push_back(static_cast<int32_t>(i));
      labels.push_back(i + 1 < ids.size() ? ids[i + 1] : -1);
    }
    starts.push_back(static_cast<int32_t>(tokens.size()));
  }
  std::vector<float> slopes;
  for (const int32_t label : labels) slopes.push_back(label < 0 ? 0.0f : -1.0f / (4 * 31));
  parameters.begin_gradient(0);
  passes.forward({tokens, positions, labels, starts});
  passes.backward(slopes, parameters);
  parameters.end_gradient(0);

  std::map<std::string, std::vector<float>> stored;
  for (NamedValues& tensor : read_tensors(golden() / "fp8" / "first_step.safetensors"))
    stored[tensor.name] = std::move(tensor.values);
  size_t compared = 0;
  for (const Parameters::Named& tensor : parameters.tensors()) {
    const auto rounded = stored.find("fp8." + tensor.name);
    if (rounded == stored.end()) continue;
    ++compared;
    const std::vector<float>& exact = stored.at("float64." + tensor.name);
    std::vector<float> ours(static_cast<size_t>(tensor.count));
    parameters.read(Parameters::Kind::kGradient, tensor, ours);
    double off = 0, rounding = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      off += std::pow(static_cast<double>(ours[i]) - rounded->second[i], 2);
      rounding += std::pow(static_cast<double>(rounded->second[i]) - exact[i], 2);
    }
    const double most = tensor.name.starts_with("model.layers.1.") ? 0.5 : 1;
    EXPECT_LT(std::sqrt(off), most * std::sqrt(rounding)) << tensor.name;
  }
  EXPECT_EQ(compared, 14u);
}

}  // namespace
}  // namespace qiao::train
