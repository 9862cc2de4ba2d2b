// The whole loop, and what a run leaves behind.
#include "train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/file.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/golden_run.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

std::string bytes_of(const fs::path& path) { return read_file(path); }

TEST(TrainTest, ARunThatStopsGoesOnToTheSameBytes) {
  const testing::TemporaryDirectory folder;
  TrainOptions whole = as_pytorch(folder.path() / "whole"), parts = as_pytorch(folder.path() / "parts");
  whole.steps = parts.steps = 24;
  whole.data.shuffle = parts.data.shuffle = true;
  run(whole);
  Recorder first;
  first.stop_after = 7;
  train(parts, first);
  EXPECT_EQ(first.steps.size(), 7u);
  parts.resume = true;
  const Recorder rest = run(parts);
  EXPECT_EQ(rest.steps.front().step, 8);
  EXPECT_EQ(bytes_of(whole.out / "model" / "model.safetensors"),
            bytes_of(parts.out / "model" / "model.safetensors"));
}

TEST(TrainTest, ADamagedCheckpointIsPassedOver) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.steps = 20;
  run(options);
  const std::string before = bytes_of(options.out / "model" / "model.safetensors");
  const fs::path damaged = options.out / "checkpoints" / "step-00000020" / "state.safetensors";
  std::string bytes = bytes_of(damaged);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_file_atomically(damaged, bytes);
  options.resume = true;
  const Recorder again = run(options);
  ASSERT_EQ(again.steps.size(), 10u);  // from the one before it
  EXPECT_EQ(again.steps.front().step, 11);
  EXPECT_EQ(bytes_of(options.out / "model" / "model.safetensors"), before);
}

TEST(TrainTest, OtherDataThanTheRunsIsRefused) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.steps = 3;
  run(options);
  const fs::path data = folder.path() / "fewer.jsonl";
  write_file_atomically(data, "{\"tokens\": [1, 2, 3]}\n");
  options.data.files = {data};
  options.steps = 4;
  options.resume = true;
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "stands at row 12", "there are 1");
}

TEST(TrainTest, ComputingLayersAgainGivesTheSameBytes) {
  for (const char* model : {"llama", "gemma3", "qwen3-moe"}) {
    const testing::TemporaryDirectory folder;
    TrainOptions kept = as_pytorch(folder.path() / "kept", model);
    TrainOptions again = as_pytorch(folder.path() / "again", model);
    kept.steps = again.steps = 4;
    kept.recompute = "off";
    again.recompute = "on";
    const Recorder more = run(kept), less = run(again);
    EXPECT_GT(more.report.memory.activations, less.report.memory.activations) << model;
    EXPECT_EQ(bytes_of(kept.out / "model" / "model.safetensors"),
              bytes_of(again.out / "model" / "model.safetensors"))
        << model;
  }
}

// Where nothing is learnt, held-out rows have the loss that training on them has.
TEST(TrainTest, HeldOutRowsAreValidated) {
  const testing::TemporaryDirectory folder;
  std::string rows = read_file(golden() / "data.jsonl");
  size_t end = 0;
  for (int i = 0; i < 6; ++i) end = rows.find('\n', end) + 1;
  rows.resize(end);
  write_file_atomically(folder.path() / "six.jsonl", rows);
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.data.files = options.validation = {folder.path() / "six.jsonl"};
  options.optimizer.learning_rate = 0;
  options.batch = 6;
  options.micro_batch = 4;  // the last part holds two
  options.steps = 5;
  options.validate_every = 2;
  TrainOptions spread = options;
  spread.out = folder.path() / "spread", spread.tensor_parallel = 2, spread.virtual_ranks = 1;
  for (const Recorder& recorder : {run(options), run_in_threads(spread, 2)}) {
    ASSERT_EQ(recorder.steps.size(), 5u);
    for (const StepRecord& record : recorder.steps) {
      const bool validated = record.step == 2 || record.step == 4 || record.step == 5;
      ASSERT_EQ(record.more.contains("validation_loss"), validated) << record.step;
      if (!validated) continue;
      EXPECT_NEAR(record.more["validation_loss"].get<double>() / record.loss, 1, 1e-12);
    }
  }
  options.validation = {folder.path() / "none.jsonl"};
  options.out = folder.path() / "other";
  EXPECT_QIAO_ERROR(run(options), kNotFound, "none.jsonl");
}

TEST(TrainTest, PartsOfABatchAddUpToTheWhole) {
  const testing::TemporaryDirectory folder;
  TrainOptions whole = as_pytorch(folder.path() / "whole"), parts = as_pytorch(folder.path() / "parts");
  whole.steps = parts.steps = 5;
  parts.micro_batch = 1;
  const Recorder a = run(whole), b = run(parts);
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(a.steps[i].loss, b.steps[i].loss, 2e-6 * a.steps[i].loss);
}

TEST(TrainTest, KeepsWhatIsNoWeightByteForByte) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.steps = 1;
  run(options);
  for (const char* name : {"config.json", "generation_config.json"})
    EXPECT_EQ(bytes_of(options.out / "model" / name), bytes_of(golden() / "llama" / "init" / name));
}

TEST(TrainTest, WrongOptionsNameThemselves) {
  const testing::TemporaryDirectory folder;
  const auto with = [&](auto change) {
    TrainOptions options = as_pytorch(folder.path() / "never");
    change(options);
    return options;
  };
  EXPECT_QIAO_ERROR(run(with([](TrainOptions& o) { o.steps = 0; })), kInvalidInput, "--steps is 0");
  EXPECT_QIAO_ERROR(run(with([](TrainOptions& o) { o.optimizer.beta2 = 1; })), kInvalidInput, "--beta2 is 1");
  EXPECT_QIAO_ERROR(run(with([](TrainOptions& o) { o.dtype = "f16"; })), kInvalidInput, "--dtype is f16",
                    "f32, bf16 or fp8");
  EXPECT_QIAO_ERROR(run(with([](TrainOptions& o) { o.schedule = "steps"; })), kInvalidInput,
                    "--schedule is steps");
  EXPECT_QIAO_ERROR(run(with([](TrainOptions& o) { o.optimizer.learning_rate = NAN; })), kInvalidInput,
                    "--lr");
  EXPECT_QIAO_ERROR(run(with([](TrainOptions& o) { o.resume = true; })), kNotFound, "no whole checkpoint");
}

TEST(TrainTest, BadRowsAreToldAndSkipped) {
  const testing::TemporaryDirectory folder;
  const fs::path data = folder.path() / "rows.jsonl";
  std::string rows = "{\"tokens\": [1, 2\n{\"tokens\": [5]}\n[]\n{\"tokens\": [1, 96]}\n";
  for (int i = 0; i < 8; ++i) rows += "{\"tokens\": [1, 2, 3, 4, 5, 6, 7, 8]}\n";
  write_file_atomically(data, rows);
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.data.files = {data};
  options.steps = 2;
  const Recorder recorder = run(options);
  ASSERT_EQ(recorder.warnings.size(), 4u);
  for (size_t i = 0; i < 4; ++i)
    EXPECT_THAT(recorder.warnings[i],
                ::testing::HasSubstr(data.string() + ":" + std::to_string(i + 1) + ": "));
  options.data.most_bad_rows = 2;
  options.out = folder.path() / "other";
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "rows.jsonl:3", "too many");
}

TEST(TrainTest, BadRowsCountOnAsARunGoesOn) {
  const testing::TemporaryDirectory folder;
  const fs::path data = folder.path() / "rows.jsonl";
  // Eight rows a step; one that is bad in each step's.
  std::string rows;
  for (int i = 0; i < 32; ++i) rows += i % 8 == 3 ? "[]\n" : "{\"tokens\": [1, 2, 3, 4, 5, 6, 7, 8]}\n";
  write_file_atomically(data, rows);
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.data.files = {data};
  options.data.sequence = 7;
  options.data.most_bad_rows = 2;
  options.batch = 8;
  options.steps = 2;
  EXPECT_EQ(run(options).warnings.size(), 2u);
  options.resume = true;
  options.steps = 3;
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "rows.jsonl:20", "3 bad rows of 32 are too many");
  options.data.most_bad_rows = 3;
  const Recorder recorder = run(options);
  EXPECT_EQ(recorder.warnings.size(), 1u);
  // Other rows are told of, and the place kept.
  write_file_atomically(data, rows + rows);
  options.steps = 4;
  const Recorder other = run(options);
  ASSERT_FALSE(other.warnings.empty());
  EXPECT_THAT(other.warnings[0], ::testing::HasSubstr("the run began with 32"));
}

TEST(LearningRateTest, WarmsUpAndFalls) {
  TrainOptions options;
  options.steps = 110;
  options.warmup = 10;
  options.optimizer.learning_rate = 1.0;
  options.least_learning_rate = 0.1;
  options.schedule = "linear";
  EXPECT_DOUBLE_EQ(learning_rate(options, 5), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(options, 10), 1.0);
  EXPECT_NEAR(learning_rate(options, 60), 0.55, 1e-6);
  EXPECT_NEAR(learning_rate(options, 110), 0.1, 1e-6);
  options.schedule = "cosine";
  EXPECT_NEAR(learning_rate(options, 60), 0.55, 1e-6);
  EXPECT_NEAR(learning_rate(options, 35), 0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2, 1e-6);
  options.schedule = "constant";
  EXPECT_DOUBLE_EQ(learning_rate(options, 110), 1.0);
}

TEST(LearningRateTest, StaysAndFallsAtTheEnd) {
  TrainOptions options;
  options.schedule = "wsd";
  options.steps = 100;
  options.warmup = 10;
  options.decay = 0.2;
  options.optimizer.learning_rate = 2.0;
  options.least_learning_rate = 0.1;
  EXPECT_DOUBLE_EQ(learning_rate(options, 5), 1.0);  // half of the warm-up
  EXPECT_DOUBLE_EQ(learning_rate(options, 10), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate(options, 80), 2.0);  // the last before it falls
  EXPECT_DOUBLE_EQ(learning_rate(options, 85), 2.0 * (0.1 + 0.9 * 0.75));
  EXPECT_DOUBLE_EQ(learning_rate(options, 90), 2.0 * (0.1 + 0.9 * 0.5));
  EXPECT_DOUBLE_EQ(learning_rate(options, 100), 0.2);
  options.decay = 0;
  EXPECT_DOUBLE_EQ(learning_rate(options, 100), 2.0);
  options.decay = 1;  // falls as soon as it is warm
  EXPECT_DOUBLE_EQ(learning_rate(options, 55), 2.0 * (0.1 + 0.9 * 0.5));
}

}  // namespace
}  // namespace qiao::train
