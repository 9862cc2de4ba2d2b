// Fine-tuning and preferences, step by step against PyTorch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/file.h"
#include "base/json.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/golden_run.h"
#include "train/trainer.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

fs::path chat_golden() { return fs::path(QIAO_TEST_DATA) / "golden"; }

class Collector final : public TrainObserver {
 public:
  void on_start(const TrainReport&) override {}
  void on_step(const StepRecord& record) override { steps.push_back(record); }
  void on_warning(const std::string& text) override { warnings.push_back(text); }
  void on_sample(int64_t, const std::string&, const std::string&) override {}
  void on_profile(const std::string&) override {}
  bool should_stop() override { return std::ssize(steps) == stop_after; }

  std::vector<StepRecord> steps;
  std::vector<std::string> warnings;
  int64_t stop_after = -1;
};

// As make_chat_training.py trains.
TrainOptions chat_options(const fs::path& out, const char* mode) {
  TrainOptions options;
  options.mode = mode;
  options.init = chat_golden() / "chat";
  options.out = out;
  options.data.files = {chat_golden() / "chat_training" /
                        (options.mode == "dpo" ? "pairs.jsonl" : "chats.jsonl")};
  options.data.shuffle = false;
  options.data.sequence = options.mode == "dpo" ? 256 : 112;  // one conversation each
  options.batch = 2;
  options.steps = 8;
  options.schedule = "constant";
  options.threads = 2;
  return options;
}

Collector run_chat(const TrainOptions& options) {
  Collector collector;
  train(options, collector);
  return collector;
}

// No further from PyTorch's float64 than twice its own float32 is.
void expect_as_pytorch(const std::vector<StepRecord>& steps, const Json& expected) {
  ASSERT_EQ(steps.size(), 8u);
  double loss_gap = 0, loss_theirs = 0, norm_gap = 0, norm_theirs = 0;
  for (size_t i = 0; i < 8; ++i) {
    const double loss = expected["float64"][i][0], norm = expected["float64"][i][1];
    loss_gap = std::max(loss_gap, std::abs(steps[i].loss - loss));
    norm_gap = std::max(norm_gap, std::abs(steps[i].gradient_norm - norm));
    loss_theirs = std::max(loss_theirs, std::abs(expected["float32"][i][0].get<double>() - loss));
    norm_theirs = std::max(norm_theirs, std::abs(expected["float32"][i][1].get<double>() - norm));
  }
  EXPECT_LE(loss_gap, 2 * loss_theirs);
  EXPECT_LE(norm_gap, 2 * norm_theirs);
}

TEST(ChatTrainingTest, FinetuningFollowsPyTorch) {
  const testing::TemporaryDirectory folder;
  const TrainOptions options = chat_options(folder.path() / "run", "finetune");
  const Json expected = parse_json(read_file(chat_golden() / "chat_training" / "finetune.json"), "finetune");
  expect_as_pytorch(run_chat(options).steps, expected);
}

class PreferenceTrainingTest : public ::testing::TestWithParam<std::pair<const char*, double>> {};

TEST_P(PreferenceTrainingTest, FollowsPyTorch) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = chat_options(folder.path() / "run", "dpo");
  options.optimizer.learning_rate = 1e-4;
  options.preference.beta = 0.5;
  options.preference.loss = GetParam().first;
  options.preference.label_smoothing = GetParam().second;
  const Collector ours = run_chat(options);
  const Json expected =
      parse_json(read_file(chat_golden() / "chat_training" / "preference.json"), "preference");
  const Json& of_loss = expected[fmt::format("{} {:.1f}", options.preference.loss, GetParam().second)];
  expect_as_pytorch(ours.steps, of_loss);
  for (const char* key : {"rewards/chosen", "rewards/rejected", "rewards/margins"})
    EXPECT_EQ(ours.steps[0].more[key], 0) << key;  // the policy is the reference yet
  // It learns: the two pairs of the first step, two rounds later.
  EXPECT_EQ(ours.steps[6].more["rewards/accuracies"], 1);
  EXPECT_GT(ours.steps[6].more["rewards/margins"].get<double>(), 0.1);

  options.out = folder.path() / "spread";
  options.tensor_parallel = 2, options.virtual_ranks = 1;
  const Recorder spread = run_in_threads(options, 2);
  expect_as_pytorch(spread.steps, of_loss);
  EXPECT_EQ(spread.steps[0].more["rewards/margins"], 0);  // over two processes, too
}

INSTANTIATE_TEST_SUITE_P(All, PreferenceTrainingTest,
                         ::testing::Values(std::pair("sigmoid", 0.0), std::pair("sigmoid", 0.1),
                                           std::pair("ipo", 0.0)));

TEST(ChatTrainingTest, PairsInPartsGiveTheSameStepAndARunGoesOnToTheSameBytes) {
  const testing::TemporaryDirectory folder;
  TrainOptions whole = chat_options(folder.path() / "whole", "dpo");
  whole.optimizer.learning_rate = 1e-4;
  whole.data.shuffle = true;
  whole.steps = 5;
  TrainOptions parts = whole;
  parts.out = folder.path() / "parts";
  const Collector a = run_chat(whole);
  Collector first;
  first.stop_after = 3;
  train(parts, first);
  parts.resume = true;
  run_chat(parts);
  EXPECT_EQ(read_file(whole.out / "model" / "model.safetensors"),
            read_file(parts.out / "model" / "model.safetensors"));
  TrainOptions halves = whole;
  halves.out = folder.path() / "halves";
  halves.micro_batch = 1;
  const Collector b = run_chat(halves);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(a.steps[i].loss, b.steps[i].loss, 1e-5 * a.steps[i].loss);
    EXPECT_NEAR(a.steps[i].more["rewards/chosen"].get<double>(),
                b.steps[i].more["rewards/chosen"].get<double>(), 1e-4);
  }
}

TEST(ChatTrainingTest, TooLongConversationsAreToldAndCut) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = chat_options(folder.path() / "run", "finetune");
  options.data.sequence = 64;
  options.steps = 1;
  const Collector collector = run_chat(options);
  ASSERT_FALSE(collector.warnings.empty());
  EXPECT_THAT(collector.warnings.back(),
              ::testing::HasSubstr("3 of 4 conversations are longer than --seq 64"));
}

TEST(ChatTrainingTest, AModelWithoutATokenizerIsToldSo) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = chat_options(folder.path() / "run", "finetune");
  options.init = chat_golden() / "training" / "llama" / "init";
  EXPECT_QIAO_ERROR(run_chat(options), kUnsupported, "conversations need a tokenizer");
  options.mode = "pretrain";
  options.data.files = {folder.path() / "text.jsonl"};
  write_file_atomically(options.data.files[0], "{\"text\": \"a\"}\n");
  EXPECT_QIAO_ERROR(run_chat(options), kInvalidInput, "text.jsonl:1", "the model has no tokenizer");
}

TEST(ChatTrainingTest, WrongPreferencesNameTheirOption) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = chat_options(folder.path() / "run", "dpo");
  options.preference.beta = 0;
  EXPECT_QIAO_ERROR(run_chat(options), kInvalidInput, "--beta is 0");
  options.preference = {.label_smoothing = 0.5};
  EXPECT_QIAO_ERROR(run_chat(options), kInvalidInput, "--label-smoothing is 0.5");
  options.preference = {.loss = "hinge"};
  EXPECT_QIAO_ERROR(run_chat(options), kInvalidInput, "--loss is hinge");
}

}  // namespace
}  // namespace qiao::train
