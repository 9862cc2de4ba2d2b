// Adapters against PEFT on Transformers (tests/golden/make_lora_training.py), and what a run of one leaves.
#include "train/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backend/backend.h"
#include "base/file.h"
#include "formats/safetensors.h"
#include "models/decoder_training.h"
#include "models/lora_files.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/golden_run.h"
#include "train/next_token.h"
#include "train/open_data.h"
#include "train/trainer.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

Recorder run_lora(const TrainOptions& options, int64_t stop_after = -1) {
  Recorder recorder;
  recorder.stop_after = stop_after;
  train(options, recorder);
  return recorder;
}

// As make_lora_training.py trains.
TrainOptions as_peft(const fs::path& out) {
  TrainOptions options;
  options.init = golden() / "llama" / "init";
  options.out = out;
  options.lora.init = golden() / "lora" / "adapter";
  options.data.files = {golden() / "data.jsonl"};
  options.data.sequence = 32;
  options.data.shuffle = false;
  options.batch = 4;
  options.steps = 20;
  options.optimizer.learning_rate = 1e-2;
  options.schedule = "constant";
  options.threads = 2;
  return options;
}

Json expected_of(const char* name) {
  return parse_json(read_file(golden() / name / "expected.json"), "expected.json");
}

void expect_as_peft(const Recorder& ours) {
  const Json expected = expected_of("lora");
  ASSERT_EQ(ours.steps.size(), 20u);
  double loss_gap = 0, loss_theirs = 0, norm_gap = 0, norm_theirs = 0;
  for (size_t i = 0; i < 20; ++i) {
    const double loss = expected["float64"][i][0], norm = expected["float64"][i][1];
    loss_gap = std::max(loss_gap, std::abs(ours.steps[i].loss - loss) / loss);
    norm_gap = std::max(norm_gap, std::abs(ours.steps[i].gradient_norm - norm) / norm);
    loss_theirs = std::max(loss_theirs, std::abs(expected["float32"][i][0].get<double>() - loss) / loss);
    norm_theirs = std::max(norm_theirs, std::abs(expected["float32"][i][1].get<double>() - norm) / norm);
  }
  EXPECT_LE(loss_gap, 2 * loss_theirs);
  EXPECT_LE(norm_gap, 2 * norm_theirs);
  EXPECT_LT(ours.steps.back().loss, ours.steps.front().loss - 0.2);  // it learns
}

TEST(LoraTrainingTest, FollowsPeftsFloat64AsItsOwnFloat32Does) {
  const testing::TemporaryDirectory folder;
  expect_as_peft(run_lora(as_peft(folder.path() / "run")));
}

// Its matrices cut as the layers are: over two processes, and over four, two of which have each key/value
// head.
TEST(LoraTrainingTest, SpreadOverProcessesFollowsItAsOneDoes) {
  const testing::TemporaryDirectory folder;
  for (const int size : {2, 4}) {
    SCOPED_TRACE(size);
    TrainOptions options = as_peft(folder.path() / std::to_string(size));
    options.tensor_parallel = size, options.virtual_ranks = 1;
    expect_as_peft(run_in_threads(options, size));
  }
}

TEST(LoraTrainingTest, IsWrittenAsByOneProcess) {
  const testing::TemporaryDirectory folder;
  for (const int size : {1, 2, 4}) {
    TrainOptions options = as_peft(folder.path() / std::to_string(size));
    options.tensor_parallel = size, options.virtual_ranks = 1, options.steps = 1;
    options.optimizer.learning_rate = 0;
    run_in_threads(options, size);
    const char* const file = "model/adapter_model.safetensors";
    EXPECT_EQ(read_file(options.out / file), read_file(folder.path() / "1" / file)) << size;
  }
}

struct FirstStepCase {
  const char *name, *base, *chip;
};

class LoraGradientTest : public ::testing::TestWithParam<FirstStepCase> {};

// Every gradient of the first step, in PEFT's parametrisation: within issue 5's bound of PyTorch's float64.
TEST_P(LoraGradientTest, GradientsArePefts) {
  const auto [name, base, chip] = GetParam();
  const auto files = ModelFiles::open(golden() / base);
  const auto backend = make_backend(chip, {.threads = 2});
  const auto decoder = Decoder::load(*files, *backend, {.compute = DecoderOptions::Policy::kF32});
  Parameters parameters(*backend);
  LoraOptions lora;
  lora.init = golden() / name / "adapter";
  LoraAdapter adapter(lora, 0, golden() / base, *files, *decoder, parameters);
  adapter.prepare(parameters);
  const auto data = open_data(as_peft({}), *files, nullptr, 96, [](const std::string&) {});
  NextToken objective(*data, 4, 0);
  objective.begin_step(1);
  DecoderTraining passes(*decoder, objective.most_tokens(), objective.most_documents());
  const std::span<const float> logprob = passes.forward(objective.part(0));
  std::vector<float> dlogprob(logprob.size());
  objective.loss(0, logprob, dlogprob);
  parameters.begin_gradient(0);
  passes.backward(dlogprob, parameters);
  parameters.end_gradient(0);
  const SafetensorsFiles expected =
      open_safetensors(golden() / name / "first_step.safetensors", TypePolicy::kRefuseUnsupported);
  ASSERT_EQ(expected.tensors.size(), parameters.tensors().size());
  for (const Parameters::Named& tensor : parameters.tensors()) {
    const auto found = std::ranges::find(expected.tensors, tensor.name, &TensorInfo::name);
    ASSERT_NE(found, expected.tensors.end()) << tensor.name;
    ASSERT_EQ(found->shape, tensor.shape);
    std::vector<float> right(static_cast<size_t>(tensor.count));
    std::memcpy(right.data(), expected.files.front().bytes().data() + found->offset, found->bytes);
    std::vector<float> got(right.size());
    parameters.read(Parameters::Kind::kGradient, tensor, got);
    got = adapter.as_peft(tensor, got);
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_LE(std::abs(got[i] - right[i]), 1e-6 + 1e-4 * std::abs(right[i])) << tensor.name << " " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Bases, LoraGradientTest,
                         ::testing::Values(FirstStepCase{"lora", "llama/init", "cpu"},
                                           FirstStepCase{"lora", "llama/init", "reference"},
                                           FirstStepCase{"qlora", "qlora/base.gguf", "cpu"},
                                           FirstStepCase{"qlora", "qlora/base.gguf", "reference"}),
                         [](const auto& param) {
                           return fmt::format("{}_{}", param.param.name, param.param.chip);
                         });

TrainOptions as_qlora(const fs::path& out) {
  TrainOptions options = as_peft(out);
  options.init = golden() / "qlora" / "base.gguf";
  options.lora.init = golden() / "qlora" / "adapter";
  return options;
}

// The base computes as the server has it, activations rounded to 8 bits: PyTorch's run with the same rounding
// is met far nearer than the one without. (Not to float32's accuracy: a value in the middle between two steps
// may go either way.)
TEST(QloraTest, AFirstStepIsPyTorchsWithRoundedActivations) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_qlora(folder.path() / "run");
  options.steps = 1;
  TrainOptions spread = options;
  spread.out = folder.path() / "spread", spread.tensor_parallel = 2, spread.virtual_ranks = 1;
  const Json expected = expected_of("qlora");
  const double loss = expected["rounded"][0][0], norm = expected["rounded"][0][1];
  for (const Recorder& ours : {run_lora(options), run_in_threads(spread, 2)}) {
    EXPECT_LE(std::abs(ours.steps[0].loss - loss),
              std::abs(expected["float64"][0][0].get<double>() - loss) / 4);
    EXPECT_LE(std::abs(ours.steps[0].gradient_norm - norm),
              std::abs(expected["float64"][0][1].get<double>() - norm) / 4);
  }
}

TEST(QloraTest, LearnsOnAQuantizedBase) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_qlora(folder.path() / "run");
  options.steps = 50;
  const Recorder ours = run_lora(options);
  EXPECT_LT(ours.steps.back().loss, ours.steps.front().loss - 0.3);
}

TEST(LoraTrainingTest, WhatIsTrainedIsWhatIsServed) {
  for (const bool quantized : {false, true}) {
    const testing::TemporaryDirectory folder;
    TrainOptions options = quantized ? as_qlora(folder.path() / "run") : as_peft(folder.path() / "run");
    options.steps = 3;
    run_lora(options);
    // Beside the base, by the server's own path, its loss is what the next step of the run begins with.
    options.steps = 4;
    options.resume = true;
    const double next = run_lora(options).steps.at(0).loss;
    const auto files = ModelFiles::open(options.init);
    const auto backend = make_backend("cpu", {.threads = 2});
    const auto decoder = Decoder::load(*files, *backend);
    TrainOptions third = quantized ? as_qlora(folder.path() / "again") : as_peft(folder.path() / "again");
    third.steps = 3;
    run_lora(third);
    decoder->add_adapter(*LoraFiles::open(third.out / "model"));
    const auto data = open_data(options, *files, nullptr, 96, [](const std::string&) {});
    NextToken objective(*data, 4, 0);
    for (int64_t step = 1; step <= 4; ++step) objective.begin_step(step);
    DecoderTraining passes(*decoder, objective.most_tokens(), objective.most_documents());
    std::vector<float> dlogprob(128);
    EXPECT_EQ(objective.loss(0, passes.forward(objective.part(0)), dlogprob), next);
    const std::span<const float> base = passes.forward(objective.part(0), false);
    const auto plain = Decoder::load(*files, *backend);
    DecoderTraining without(*plain, objective.most_tokens(), objective.most_documents());
    const std::span<const float> expected = without.forward(objective.part(0));
    EXPECT_TRUE(std::ranges::equal(base, expected));
  }
}

TEST(LoraTrainingTest, ANewAdapterBeginsAsTheBaseAndByItsSeedAlone) {
  const testing::TemporaryDirectory folder;
  const auto begun = [&](const char* name, uint64_t seed, std::vector<std::string> targets) {
    TrainOptions options = as_peft(folder.path() / name);
    options.lora = {.rank = 5, .alpha = 10, .targets = std::move(targets)};
    options.data.seed = seed;
    options.optimizer.learning_rate = 0;
    options.optimizer.weight_decay = 0;
    options.steps = 1;
    return options;
  };
  TrainOptions whole = as_peft(folder.path() / "whole");
  whole.lora = {};
  whole.steps = 1;
  const Recorder all = run_lora(begun("all", 1, {"all-linear"}));
  EXPECT_EQ(all.steps[0].loss, run_lora(whole).steps[0].loss);
  run_lora(begun("some", 1, {"q_proj", "layers.1.mlp.down_proj"}));
  run_lora(begun("other", 2, {"q_proj"}));
  const auto values = [&](const char* name, const std::string& tensor) {
    const auto files = LoraFiles::open(folder.path() / name / "model");
    for (const LoraPair& pair : files->pairs()) {
      if (pair.module + ".A" == tensor) return files->floats(*pair.a);
      if (pair.module + ".B" == tensor) return files->floats(*pair.b);
    }
    return std::vector<float>{};
  };
  const std::string q = "model.layers.0.self_attn.q_proj";
  const std::vector<float> a = values("all", q + ".A");
  ASSERT_EQ(a.size(), 5u * 48);
  EXPECT_EQ(a, values("some", q + ".A"));
  EXPECT_NE(a, values("other", q + ".A"));
  EXPECT_NE(a, values("all", "model.layers.1.self_attn.q_proj.A"));
  double sum = 0, squares = 0;
  for (const float value : a) {
    EXPECT_LT(std::abs(value), 1 / std::sqrt(48.0));
    sum += value, squares += double{value} * value;
  }
  EXPECT_NEAR(squares / 240, 1 / (3 * 48.0), 0.2 / (3 * 48.0));  // of a uniform distribution
  EXPECT_NEAR(sum / 240, 0, 0.03);
  EXPECT_THAT(values("all", q + ".B"), ::testing::Each(0.0f));
  EXPECT_EQ(LoraFiles::open(folder.path() / "all" / "model")->pairs().size(), 14u);
  EXPECT_EQ(LoraFiles::open(folder.path() / "some" / "model")->pairs().size(), 3u);
  EXPECT_EQ(all.report.parameters % 16, 0);
  EXPECT_LT(all.report.parameters, 2 * 5 * (7 * 48 + 64 + 2 * 32 + 3 * 96 + 96) + 14 * 32);
}

TEST(LoraTrainingTest, ARunThatStopsGoesOnToTheSameBytes) {
  const testing::TemporaryDirectory folder;
  for (const bool quantized : {false, true}) {
    const std::string name = quantized ? "q" : "d";
    const auto make = [&](const std::string& out) {
      return quantized ? as_qlora(folder.path() / (name + out)) : as_peft(folder.path() / (name + out));
    };
    TrainOptions whole = make("whole"), parts = make("parts");
    whole.steps = parts.steps = 8;
    whole.data.shuffle = parts.data.shuffle = true;
    run_lora(whole);
    EXPECT_EQ(run_lora(parts, 3).steps.size(), 3u);
    parts.resume = true;
    EXPECT_EQ(run_lora(parts).steps.size(), 5u);
    for (const char* file : {"adapter_model.safetensors", "adapter_config.json"})
      EXPECT_EQ(read_file(whole.out / "model" / file), read_file(parts.out / "model" / file));
  }
}

// Preferences are measured against the base without the adapter: where B is 0 the two are one, and the loss
// is log 2.
// The loss's slope by single numbers of the adapter, with the mask of the forward pass.
TEST(LoraTrainingTest, TheWayBackDropsWhatTheWayThereDid) {
  const auto files = ModelFiles::open(golden() / "llama" / "init");
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto decoder = Decoder::load(*files, *backend, {.compute = DecoderOptions::Policy::kF32});
  Parameters parameters(*backend);
  LoraOptions lora;
  lora.init = golden() / "lora" / "adapter";
  LoraAdapter adapter(lora, 0, golden() / "llama" / "init", *files, *decoder, parameters);
  adapter.prepare(parameters);
  parameters.rewrite();
  std::vector<int32_t> tokens(40), positions(40), labels(40, -1);
  for (size_t i = 0; i < 40; ++i) {
    tokens[i] = static_cast<int32_t>(7 * i % 96), positions[i] = static_cast<int32_t>(i);
    if (i > 0) labels[i - 1] = tokens[i];
  }
  const std::vector<int32_t> starts = {0, 40};
  PackedBatch batch{tokens, positions, labels, starts};
  for (const Recompute recompute : {Recompute::kOff, Recompute::kOn}) {
    DecoderTraining passes(*decoder, 40, 1, recompute, {.dropout = true});
    const auto loss = [&](float probability) {
      batch.dropout = {.probability = probability, .seed = 5, .first_row = 3};
      double sum = 0;
      for (const float logprob : passes.forward(batch)) sum += static_cast<double>(logprob);
      return sum;
    };
    EXPECT_NE(loss(0.5f), loss(0));
    EXPECT_EQ(loss(0.5f), loss(0.5f));
    parameters.begin_gradient(0);
    loss(0.5f);
    passes.backward(std::vector<float>(40, 1.0f), parameters);
    parameters.end_gradient(0);
    for (const Parameters::Named& tensor : parameters.tensors()) {
      std::vector<float> gradient(static_cast<size_t>(tensor.count)), values(gradient.size());
      parameters.read(Parameters::Kind::kGradient, tensor, gradient);
      parameters.read(Parameters::Kind::kMaster, tensor, values);
      const auto at = static_cast<size_t>(
          std::ranges::max_element(gradient, {}, [](float g) { return std::abs(g); }) - gradient.begin());
      const float before = values[at], step = 0.02f;
      const auto moved = [&](float by) {
        values[at] = before + by;
        parameters.write_master(tensor, values);
        parameters.rewrite();
        return loss(0.5f);
      };
      const double slope = (moved(step) - moved(-step)) / (2 * static_cast<double>(step));
      moved(0);
      EXPECT_NEAR(slope, gradient[at], 0.02 * std::abs(gradient[at]) + 1e-3) << tensor.name;
    }
  }
}

TEST(LoraTrainingTest, DropoutGoesOnToTheSameBytesAndDoesNotSeeTheParts) {
  const testing::TemporaryDirectory folder;
  TrainOptions whole = as_peft(folder.path() / "whole");
  whole.lora.dropout = 0.25;
  whole.steps = 6;
  const Recorder recorder = run_lora(whole);
  TrainOptions plain = as_peft(folder.path() / "plain");
  plain.steps = 1;
  EXPECT_NE(run_lora(plain).steps[0].loss, recorder.steps[0].loss);
  TrainOptions stopped = whole;
  stopped.out = folder.path() / "stopped";
  run_lora(stopped, 3);
  stopped.resume = true;
  EXPECT_EQ(run_lora(stopped).steps.front().step, 4);
  const auto adapter_of = [](const TrainOptions& options) {
    return read_file(options.out / "model" / "adapter_model.safetensors");
  };
  EXPECT_EQ(adapter_of(stopped), adapter_of(whole));
  const Json config = parse_json(read_file(whole.out / "model" / "adapter_config.json"), "config");
  EXPECT_EQ(config.at("lora_dropout"), 0.25);
  TrainOptions parts = whole;
  parts.out = folder.path() / "parts";
  parts.micro_batch = 1;
  EXPECT_NEAR(run_lora(parts).steps[0].loss, recorder.steps[0].loss, 1e-6 * recorder.steps[0].loss);
  parts.out = folder.path() / "grpo";
  parts.mode = "grpo";
  EXPECT_QIAO_ERROR(run_lora(parts), kInvalidInput, "--lora-dropout is 0.25", "grpo");
}

TEST(LoraTrainingTest, AnotherAdapterOrBaseDoesNotGoOn) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_peft(folder.path() / "run");
  options.lora.init.clear();
  options.lora.rank = 4;
  options.lora.alpha = 8;
  options.steps = 2;
  run_lora(options);
  options.resume = true;
  options.steps = 4;
  const auto refused = [&](auto change, const char* flag, const char* then) {
    TrainOptions other = options;
    change(other);
    EXPECT_QIAO_ERROR(run_lora(other), kInvalidInput, flag, "the run began with", then);
  };
  refused([](TrainOptions& o) { o.lora.alpha = 16; }, "--lora-alpha is 16", "8");
  refused([](TrainOptions& o) { o.lora.rank = 2; }, "--lora-rank is 2", "4");
  refused([](TrainOptions& o) { o.lora.rank_stabilized = true; }, "--lora-rslora is true", "false");
  refused([](TrainOptions& o) { o.lora.targets = {"q_proj", "v_proj"}; }, "--lora-targets is", "down_proj");
  refused([](TrainOptions& o) { o.lora.rank = 0; }, "--lora-rank is 0", "4");
  // The same shapes with other numbers.
  const fs::path base = folder.path() / "base";
  std::vector<NamedValues> tensors = read_tensors(options.init / "model.safetensors");
  tensors.back().values.front() += 1;
  write_model(base, options.init, tensors, DType::kF32);
  refused([&](TrainOptions& o) { o.init = base; }, "--init is", "a model of weights");
  EXPECT_EQ(run_lora(options).steps.size(), 2u);
}

TEST(LoraTrainingTest, PreferencesAreMeasuredAgainstTheBase) {
  const testing::TemporaryDirectory folder;
  const fs::path data = folder.path() / "pairs.jsonl";
  write_file_atomically(data, R"({"prompt": "Name a colour.", "chosen": "Blue it is.", "rejected": "Seven."})"
                              "\n"
                              R"({"prompt": "Count.", "chosen": "One, two.", "rejected": "Blue, green."})"
                              "\n");
  TrainOptions options = as_peft(folder.path() / "run");
  options.mode = "dpo";
  options.init = fs::path(QIAO_TEST_DATA) / "golden" / "chat";
  options.lora = {.rank = 4};
  options.data.files = {data};
  options.data.sequence = 128;
  options.batch = 2;
  options.steps = 8;
  const Recorder recorder = run_lora(options);
  EXPECT_NEAR(recorder.steps.front().loss, std::log(2.0), 1e-6);
  EXPECT_LT(recorder.steps.back().loss, recorder.steps.front().loss - 0.05);
}

TEST(LoraTrainingTest, WrongOptionsNameThemselves) {
  const testing::TemporaryDirectory folder;
  const auto with = [&](auto change) {
    TrainOptions options = as_peft(folder.path() / "never");
    options.lora = {.rank = 4};
    change(options);
    return options;
  };
  EXPECT_QIAO_ERROR(run_lora(with([](TrainOptions& o) { o.lora.rank = 1 << 20; })), kInvalidInput,
                    "--lora-rank is 1048576");
  EXPECT_QIAO_ERROR(run_lora(with([](TrainOptions& o) { o.lora.alpha = NAN; })), kInvalidInput,
                    "--lora-alpha");
  EXPECT_QIAO_ERROR(run_lora(with([](TrainOptions& o) {
                      o.lora.targets = {"q_proj", "qkv"};
                    })),
                    kInvalidInput, "--lora-targets", "qkv", "down_proj, gate_proj");
  EXPECT_QIAO_ERROR(
      run_lora(with([](TrainOptions& o) { o.lora.init = golden() / "lora" / "adapter", o.lora.rank = 3; })),
      kInvalidInput, "--lora-rank is 3", "a rank of 4");
  EXPECT_QIAO_ERROR(
      run_lora(with([](TrainOptions& o) { o.lora.init = golden() / "qlora" / "adapter", o.lora.rank = 0; })),
      kInvalidInput, "[48, 96] was expected");
  EXPECT_QIAO_ERROR(
      run_lora(with([](TrainOptions& o) { o.lora = {.alpha = 3, .init = golden() / "lora" / "adapter"}; })),
      kInvalidInput, "--lora-init", "--lora-alpha");
  EXPECT_QIAO_ERROR(run_lora(with([](TrainOptions& o) {
                      o.lora = {};
                      o.init = golden() / "qlora" / "base.gguf";
                    })),
                    kUnsupported, "base.gguf", "--lora-rank");
}

}  // namespace
}  // namespace qiao::train
