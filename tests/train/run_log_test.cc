// TensorBoard's files against its own writer, and what else a run tells.
#include "train/run_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/event_file.h"
#include "train/golden_run.h"

namespace qiao::train {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

TEST(EventFileTest, HasTheBytesOfTensorBoardsOwnWriter) {
  constexpr double kTime = 1764000000.25;
  const std::vector<Scalar> scalars = {{"train/loss", 4.5678}, {"train/lr", 1e-3}};
  const std::string made = tf_record(version_event(kTime)) + tf_record(start_event(kTime, 301)) +
                           tf_record(scalars_event(kTime + 1, 301, scalars)) +
                           tf_record(text_event(kTime + 2, 302, "sample", "Once 桥\n"));
  EXPECT_EQ(made, read_file(fs::path(QIAO_TEST_DATA) / "golden" / "events" / "run.tfevents"));
}

TEST(EventFileTest, IsNamedAsTensorBoardLooksForIt) {
  EXPECT_THAT(event_file_name(1764000000.25), ::testing::StartsWith("events.out.tfevents.1764000000."));
}

TEST(RunLogTest, ARunWritesAnEventFileEachTimeItBegins) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.steps = 3;
  run(options);
  size_t files = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(options.out)) {
    if (entry.path().filename().string().find("tfevents") == std::string::npos) continue;
    ++files;
    const std::string bytes = read_file(entry.path());
    EXPECT_THAT(bytes, HasSubstr("brain.Event:2"));
    for (const char* tag : {"train/loss", "train/grad_norm", "train/lr", "train/tokens_per_second"})
      EXPECT_THAT(bytes, HasSubstr(tag));
  }
  EXPECT_EQ(files, 1u);
}

TEST(ProfileTest, NamesEveryOpOfAStepAndItsSharesAddUp) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.steps = 2;
  options.profile = true;
  options.device = "reference";  // whose peaks are not measured
  const Recorder recorder = run(options);
  double shares = 0, step = 0;
  std::vector<std::string> ops;
  for (size_t begin = 0; begin < recorder.profile.size();) {
    const size_t end = recorder.profile.find('\n', begin);
    const std::string line = recorder.profile.substr(begin, end - begin);
    begin = end + 1;
    const size_t percent = line.find('%');
    if (percent == std::string::npos) continue;
    const double share = std::stod(line.substr(line.rfind(' ', percent)));
    (line.starts_with("step ") ? step : shares) += share;
    ops.push_back(line.substr(0, line.find(' ')));
  }
  for (const char* op :
       {"linear", "linear_backward", "attention_varlen", "attention_varlen_backward", "add_rms_norm",
        "add_rms_norm_backward", "gated_activation", "gated_activation_backward", "rope", "gather",
        "gather_backward", "token_loss", "adamw", "sum_of_squares", "write_weight"})
    EXPECT_THAT(ops, ::testing::Contains(op));
  EXPECT_NEAR(step, 100, 0.05);
  EXPECT_NEAR(shares, 100, 0.05 * static_cast<double>(ops.size()));  // each is rounded to a tenth
}

TEST(MemoryTest, ADryRunStatesAndLeavesNothing) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.dry_run = true;
  const Recorder recorder = run(options);
  EXPECT_TRUE(recorder.steps.empty());
  EXPECT_FALSE(fs::exists(options.out));
  EXPECT_GT(recorder.report.tokens_per_second, 0);
  // 4 sequences of 32 tokens a step.
  EXPECT_NEAR(recorder.report.seconds * recorder.report.tokens_per_second, 50 * 4 * 32, 1e-6 * 50 * 4 * 32);
}

TEST(SampleTest, SamplesComeEveryFewStepsAndChangeNothing) {
  const testing::TemporaryDirectory folder;
  const fs::path chat = fs::path(QIAO_TEST_DATA) / "golden" / "chat";
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.init = chat;
  options.steps = 5;
  options.data.files = {folder.write("rows.jsonl", "{\"text\": \"one two three one two three\"}\n")};
  TrainOptions sampled = options;
  sampled.out = folder.path() / "sampled";
  sampled.sample = {.every = 2, .prompt = "one", .tokens = 4};
  run(options);
  const Recorder recorder = run(sampled);
  EXPECT_EQ(recorder.samples.size(), 2u);
  EXPECT_EQ(read_file(options.out / "model" / "model.safetensors"),
            read_file(sampled.out / "model" / "model.safetensors"));
  const std::string lines = read_file(sampled.out / "samples.jsonl");
  EXPECT_EQ(std::ranges::count(lines, '\n'), 2);
  const Json first = parse_json(lines.substr(0, lines.find('\n')), "line");
  EXPECT_EQ(first["step"], 2);
  EXPECT_EQ(first["prompt"], "one");
  EXPECT_EQ(first["text"], recorder.samples[0]);
  sampled.out = folder.path() / "long";
  sampled.sample.tokens = 1 << 20;
  EXPECT_QIAO_ERROR(run(sampled), kInvalidInput, "--sample-tokens is 1048576", "context");
}

}  // namespace
}  // namespace qiao::train
