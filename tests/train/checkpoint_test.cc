// What a run leaves behind, and how it goes on after what can happen to it.
#include "train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <future>
#include <thread>

#include "base/file.h"
#include "models/weights.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/background.h"
#include "train/golden_run.h"
#include "train/run_folder.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

TrainOptions short_run(const fs::path& out, int64_t steps) {
  TrainOptions options = as_pytorch(out);
  options.steps = steps;
  options.checkpoint_every = 2;
  return options;
}

// The system refuses files over `bytes` of this process, as a full disk would, while it lives.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

// Fills the disk once the first checkpoint, of step 2, is written, and empties it behind the last of so many
// warnings.
class DiskRecorder final : public Recorder {
 public:
  DiskRecorder(fs::path run, size_t warnings) : run_(std::move(run)), warnings_(warnings) {}
  void on_step(const StepRecord& record) override {
    Recorder::on_step(record);
    if (record.step != 3) return;
    while (!fs::exists(run_ / "model" / "model.safetensors"))
      std::this_thread::yield();  // what is written last
    full_.emplace(rlim_t{4096});
  }
  void on_warning(const std::string& text) override {
    Recorder::on_warning(text);
    if (warnings.size() == warnings_) full_.reset();
  }

 private:
  fs::path run_;
  size_t warnings_;
  std::optional<FullDisk> full_;
};

TEST(CheckpointTest, AFullDiskIsAWarningAndTheOldCheckpointStays) {
  const testing::TemporaryDirectory folder;
  const TrainOptions undisturbed = short_run(folder.path() / "undisturbed", 8);
  run(undisturbed);
  TrainOptions options = short_run(folder.path() / "run", 8);
  options.keep_checkpoints = 4;
  DiskRecorder recorder(options.out, 2);
  train(options, recorder);
  EXPECT_EQ(recorder.steps.size(), 8u);
  ASSERT_EQ(recorder.warnings.size(), 2u) << fmt::format("{}", fmt::join(recorder.warnings, "; "));
  EXPECT_THAT(recorder.warnings[0], HasSubstr("the checkpoint of step 4 is not written"));
  EXPECT_THAT(recorder.warnings[0], HasSubstr("File too large"));
  EXPECT_THAT(recorder.warnings[1], HasSubstr("the checkpoint of step 6 is not written"));
  EXPECT_THAT(names_in(options.out / "checkpoints"), ElementsAre("step-00000002", "step-00000008"));
  EXPECT_EQ(model_bytes(options), model_bytes(undisturbed));
}

TEST(CheckpointTest, AFullDiskAtTheEndIsAnErrorAndTheRunGoesOnLater) {
  const testing::TemporaryDirectory folder;
  const TrainOptions undisturbed = short_run(folder.path() / "undisturbed", 4);
  run(undisturbed);
  TrainOptions options = short_run(folder.path() / "run", 4);
  {
    DiskRecorder recorder(options.out, 1);
    EXPECT_QIAO_ERROR(train(options, recorder), kIo, "the checkpoint of step 4 is not written");
  }
  EXPECT_THAT(names_in(options.out / "checkpoints"), ElementsAre("step-00000002"));
  EXPECT_THAT(names_in(options.out / "model"),
              ElementsAre("config.json", "generation_config.json", "model.safetensors"));
  options.resume = true;
  EXPECT_EQ(run(options).steps.front().step, 3);
  EXPECT_EQ(model_bytes(options), model_bytes(undisturbed));
}

TEST(CheckpointTest, MetricsWaitForRoomAndNoLineIsTornOrLost) {
  const testing::TemporaryDirectory folder;
  AppendFile file(folder.path() / "lines");
  file.append("one\n");
  {
    const FullDisk full(6);
    EXPECT_QIAO_ERROR(file.append("second\n"), kIo, "lines", "cannot write");
    EXPECT_EQ(read_file(folder.path() / "lines"), "one\n");
  }
  file.append("third\n");
  EXPECT_EQ(read_file(folder.path() / "lines"), "one\nsecond\nthird\n");
}

TEST(CheckpointTest, OneAtTheEndAloneNeedsNoCopyAndHasTheSameBytes) {
  const testing::TemporaryDirectory folder;
  TrainOptions between = short_run(folder.path() / "between", 4);
  TrainOptions at_end = short_run(folder.path() / "at_end", 4);
  at_end.checkpoint_every = 0;
  const MemoryPlan copied = run(between).report.memory, in_place = run(at_end).report.memory;
  EXPECT_LT(in_place.checkpoint * 2, copied.checkpoint);
  for (const char* file : {"model/model.safetensors", "checkpoints/step-00000004/state.safetensors"})
    EXPECT_EQ(read_file(between.out / file), read_file(at_end.out / file)) << file;
}

TEST(CheckpointTest, TheLastOnesStay) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = short_run(folder.path() / "run", 9);
  options.keep_checkpoints = 3;
  run(options);
  EXPECT_THAT(names_in(options.out / "checkpoints"),
              ElementsAre("step-00000006", "step-00000008", "step-00000009"));
}

TEST(CheckpointTest, TornMetricsAreRepaired) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = short_run(folder.path() / "run", 4);
  run(options);
  std::ofstream(options.out / "metrics.jsonl", std::ios::app)
      << "{\"step\": 5, \"loss\": 1}\n{\"ste\n{\"step\": 6, \"loss\": 1}\n{\"step\": 7, \"lo";
  options.steps = 8;
  options.resume = true;
  run(options);
  std::ifstream lines(options.out / "metrics.jsonl");
  int64_t expected = 0;
  for (std::string line; std::getline(lines, line);) {
    const Json json = parse_json(line, "line");
    EXPECT_EQ(json.at("step").get<int64_t>(), ++expected);
    EXPECT_TRUE(json.contains("grad_norm"));
  }
  EXPECT_EQ(expected, 8);
}

TEST(CheckpointTest, WhatAKilledProcessLeftHalfWrittenGoesAway) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = short_run(folder.path() / "run", 4);
  run(options);
  folder.write("run/checkpoints/step-00000006.part/state.safetensors", "half");
  folder.write("run/model/model.safetensors.tmp.1.0", "half");
  fs::remove(options.out / "model" / "config.json");  // killed before the model was whole
  options.resume = true;
  EXPECT_TRUE(run(options).steps.empty());
  EXPECT_THAT(names_in(options.out / "checkpoints"), ElementsAre("step-00000002", "step-00000004"));
  EXPECT_THAT(names_in(options.out / "model"),
              ElementsAre("config.json", "generation_config.json", "model.safetensors"));
}

TEST(CheckpointTest, ARunBeforeItsFirstCheckpointBeginsAgain) {
  const testing::TemporaryDirectory folder;
  const TrainOptions whole = short_run(folder.path() / "whole", 3);
  run(whole);
  TrainOptions options = short_run(folder.path() / "run", 3);
  folder.write("run/lock", "1");
  folder.write("run/metrics.jsonl", "{\"step\": 1, \"loss\": 7}\n");
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "a run is here already", "--resume");
  options.resume = true;
  const Recorder recorder = run(options);
  ASSERT_EQ(recorder.warnings.size(), 1u);
  EXPECT_THAT(recorder.warnings[0], HasSubstr("no checkpoint yet"));
  EXPECT_EQ(recorder.steps.size(), 3u);
  EXPECT_EQ(model_bytes(options), model_bytes(whole));
}

TEST(CheckpointTest, DamagedOnesDoNotCountAmongThoseKept) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = short_run(folder.path() / "run", 6);
  options.keep_checkpoints = 3;
  run(options);
  for (const char* step : {"step-00000004", "step-00000006"})
    fs::resize_file(options.out / "checkpoints" / step / "state.safetensors", 1000);
  options.resume = true;
  options.checkpoint_every = 1;
  options.keep_checkpoints = 2;
  Recorder recorder;
  recorder.stop_after = 1;
  train(options, recorder);
  ASSERT_EQ(recorder.warnings.size(), 1u);
  EXPECT_THAT(recorder.warnings[0], HasSubstr("goes on from step 2"));
  EXPECT_THAT(names_in(options.out / "checkpoints"), ElementsAre("step-00000002", "step-00000003"));
}

TEST(CheckpointTest, OneProcessAtATime) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = short_run(folder.path() / "run", 2);
  {
    const RunFolder held(options.out);
    EXPECT_QIAO_ERROR(run(options), kUnavailable, "run: process ", std::to_string(::getpid()), "trains here");
  }
  EXPECT_EQ(run(options).steps.size(), 2u);
}

TEST(CheckpointTest, AnotherModelsOrSeedsIsRefused) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = short_run(folder.path() / "run", 2);
  run(options);
  options.steps = 4;
  options.resume = true;
  options.data.seed = 7;
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "--seed is 7", "began with 0");
  options.data.seed = 0;
  options.init = golden() / "qwen3" / "init";
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "tensor parameter.model.", "another model");
}

TEST(CheckpointTest, ALossThatIsNotFiniteEndsTheRunAndKeepsTheCheckpoint) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = short_run(folder.path() / "run", 2);
  run(options);
  options.steps = 6;
  options.resume = true;
  options.optimizer.learning_rate = 1e30;
  // Step 3 makes the weights absurd, step 4 finds out.
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "step 4: the loss is",
                    "first tensor whose gradient is not finite: model.", "last checkpoint stays");
  EXPECT_THAT(names_in(options.out / "checkpoints"), ElementsAre("step-00000002"));
  options.optimizer.learning_rate = 1e-3;
  EXPECT_EQ(run(options).steps.size(), 4u);
  const TrainOptions whole = short_run(folder.path() / "whole", 6);
  run(whole);
  EXPECT_EQ(model_bytes(options), model_bytes(whole));
}

TEST(ParametersTest, NamesTheFirstGradientThatIsNotFinite) {
  const std::unique_ptr<Backend> backend = make_backend("reference");
  const auto files = ModelFiles::open(golden() / "llama" / "init");
  Parameters parameters(*backend);
  DecoderOptions options;
  options.float_weights = DType::kF32;
  options.laid_out = [&](const LaidOutTensor& tensor) { parameters.add(tensor); };
  const auto decoder = Decoder::load(*files, *backend, options);
  parameters.prepare(*files);
  EXPECT_EQ(first_not_finite(parameters, parameters.gradient_squares()), "");
  const DecoderConfig& config = decoder->config();
  const Tensor gradient = parameters.of(*decoder->weights().layers[1].attention.qkv.pieces.front().weight);
  const int64_t keys = config.num_attention_heads * config.head_dim;  // rows of queries stand before them
  const float wrong = INFINITY;
  backend->upload(static_cast<float*>(gradient.data) + (keys + 1) * config.hidden_size, &wrong,
                  sizeof(wrong));
  EXPECT_EQ(first_not_finite(parameters, parameters.gradient_squares()),
            "model.layers.1.self_attn.k_proj.weight");
}

TEST(BackgroundTest, AJobRunsBesideAndItsFailureIsToldOnce) {
  std::promise<void> go_on;
  Background background;
  EXPECT_TRUE(background.is_done());
  background.start([waits = go_on.get_future().share()] {
    waits.wait();
    throw_error(ErrorKind::kIo, "the disk is full");
  });
  EXPECT_FALSE(background.is_done());  // and start has returned
  go_on.set_value();
  EXPECT_QIAO_ERROR(background.finish(), kIo, "the disk is full");
  EXPECT_TRUE(background.is_done());
  background.finish();
  bool second = false;
  background.start([&] { second = true; });
  background.finish();
  EXPECT_TRUE(second);
}

TEST(BackgroundTest, AJobForTheEndRunsOnTheThreadThatWaits) {
  std::thread::id where;
  {
    Background background;
    background.start([&] { where = std::this_thread::get_id(); }, Background::When::kAtFinish);
    EXPECT_TRUE(background.is_done());
    EXPECT_EQ(where, std::thread::id());
    background.finish();
    EXPECT_EQ(where, std::this_thread::get_id());
    where = {};
    background.start([&] { where = std::this_thread::get_id(); }, Background::When::kAtFinish);
  }
  EXPECT_EQ(where, std::thread::id());  // nobody waited for it
}

}  // namespace
}  // namespace qiao::train
