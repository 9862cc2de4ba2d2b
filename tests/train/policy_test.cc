// Reinforcement learning on tiny models: the rollout's bits are training's, what differs is caught, rewards
// rise, runs go on to the same bytes, programs that fail end them.
#include "train/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/golden_run.h"
#include "train/policy_world.h"
#include "train/trainer.h"

namespace qiao::train {
namespace {

using qiao::testing::PolicyWorld;
namespace fs = std::filesystem;
using qiao::testing::TemporaryDirectory;

// Rows of prompts of many lengths, in tokens below `vocabulary`.
fs::path write_token_prompts(const fs::path& path, int64_t vocabulary) {
  std::string rows;
  int64_t next = 3;
  for (const int length : {1, 2, 7, 8, 9, 17, 33, 40}) {
    Json tokens = Json::array();
    for (int i = 0; i < length; ++i) tokens.push_back(next = (next * 7 + 5) % vocabulary);
    rows += dump_json({{"tokens", tokens}, {"wanted", length}}) + "\n";
  }
  write_file_atomically(path, rows);
  return path;
}

// As the completion's length: different within a group, or not.
constexpr const char* kLengthReward =
    R"(while read -r line; do line=${line#*'"completion":"'}; line=${line%%'"'*}; echo ${#line}; done)";

struct BitsCase {
  const char* model;
  int64_t group, context, max_tokens, updates, micro_batch;
  double temperature;
  int threads;
  const char* loss = "grpo";
  const char* dtype = "f32";
};

class RolloutBitsTest : public ::testing::TestWithParam<BitsCase> {};

// gemma3 has windows of 8 tokens: prompts end inside, at and beyond them. Were a bit other than the
// rollout's, loss() would throw (DifferencesAreCaught).
TEST_P(RolloutBitsTest, AreTrainings) {
  const BitsCase& c = GetParam();
  const TemporaryDirectory folder;
  const fs::path init = testing::model_of_words(c.model, folder.path() / "init");
  PolicyOptions options;
  options.group = c.group;
  options.max_tokens = c.max_tokens;
  options.temperature = c.temperature;
  options.updates = c.updates;
  options.loss = c.loss;
  options.slots = 3;  // some wait while others are drawn
  options.reward.command = kLengthReward;
  DataOptions data;
  data.files = {write_token_prompts(folder.path() / "prompts.jsonl", 96)};
  data.sequence = c.context;
  data.seed = 11;
  PolicyWorld world(init, options, data, 4, c.micro_batch, c.threads, c.dtype);
  for (const int64_t step : {int64_t{1}, 1 + c.updates}) {
    world.policy->begin_step(step);
    world.loss();
    const Json report = world.policy->report();
    EXPECT_EQ(report["rollout_differing"], 0);
    EXPECT_EQ(report["rollout_kl"], 0.0);
    EXPECT_EQ(report["clipped"], 0.0);
    EXPECT_GT(report["rollout_compared"].get<int64_t>(), c.group);
    EXPECT_GT(report["entropy"].get<double>(), 0.1);
  }
}

INSTANTIATE_TEST_SUITE_P(All, RolloutBitsTest,
                         ::testing::Values(BitsCase{"gemma3", 2, 64, 20, 1, 0, 1.0, 1},
                                           BitsCase{"gemma3", 5, 90, 40, 2, 1, 0.7, 2},
                                           BitsCase{"gemma3", 9, 48, 8, 1, 3, 1.3, 4},
                                           BitsCase{"llama", 4, 64, 20, 1, 2, 1.3, 2},
                                           BitsCase{"qwen3", 3, 64, 24, 3, 0, 0.9, 1},
                                           BitsCase{"qwen3", 4, 64, 16, 1, 0, 1.0, 2, "gspo"},
                                           BitsCase{"llama", 4, 64, 16, 1, 0, 1.0, 2, "dapo", "bf16"},
                                           BitsCase{"gemma3", 4, 64, 16, 1, 2, 0.8, 2, "grpo", "bf16"},
                                           BitsCase{"fp8", 4, 64, 16, 1, 2, 1.0, 2, "grpo", "fp8"}));

TEST(PolicyTest, DifferencesAreCaught) {
  const TemporaryDirectory folder;
  const fs::path init = testing::model_of_words("gemma3", folder.path() / "init");
  PolicyOptions options;
  options.group = 3;
  options.max_tokens = 12;
  options.reward.command = kLengthReward;
  DataOptions data;
  data.files = {write_token_prompts(folder.path() / "prompts.jsonl", 96)};
  data.sequence = 64;
  PolicyWorld world(init, options, data, 8, 0, 1);  // all prompts each step, two of them over a page of keys
  world.policy->begin_step(1);
  // As a trainer would that rewrote a weight behind the rollout's back: one in a thousand.
  const Parameters::Named& changed = world.parameters.tensors().back();
  std::vector<float> values(static_cast<size_t>(changed.count));
  world.parameters.read(Parameters::Kind::kMaster, changed, values);
  const std::vector<float> right = values;
  for (float& value : values) value *= 1.001f;
  world.parameters.write_master(changed, values);
  world.parameters.rewrite();
  EXPECT_QIAO_ERROR(world.loss(), kInvalidInput, "step 1, sequence 0 of the rollout",
                    "had the log-probability -", "has -", "tokens differ");
  EXPECT_GT(world.policy->report()["rollout_differing"].get<int64_t>(), 0);
  world.parameters.write_master(changed, right);
  world.parameters.rewrite();
  EXPECT_NO_THROW(world.loss());
  // The next rollout reads no key or value of these weights.
  world.parameters.write_master(changed, values);
  world.parameters.rewrite();
  world.policy->begin_step(2);
  EXPECT_NO_THROW(world.loss());
}

// A copy of tests/golden/chat, whose prompts are texts.
struct ChatRun {
  ChatRun() {
    std::string rows;
    for (const char* text : {"The sky is", "A bridge carries", "def add(", "Numbers: 0 1"})
      rows += dump_json({{"prompt", text}, {"answer", "e"}}) + "\n";
    write_file_atomically(folder.path() / "prompts.jsonl", rows);
    options.init = testing::golden_folder() / "chat";
    options.out = folder.path() / "run";
    options.data.files = {folder.path() / "prompts.jsonl"};
    options.data.sequence = 32;
    options.data.seed = 5;
    options.steps = 4;
    options.batch = 4;
    options.schedule = "constant";
    options.optimizer.learning_rate = 0.01;
    options.optimizer.weight_decay = 0;
    options.checkpoint_every = 2;
    options.threads = 1;
    options.mode = "grpo";
    options.policy.group = 8;
    options.policy.max_tokens = 8;
    options.policy.reward.command = kLengthReward;
  }
  fs::path write_python(const std::string& text) const {
    write_file_atomically(folder.path() / "reward.py", text);
    return folder.path() / "reward.py";
  }
  TemporaryDirectory folder;
  TrainOptions options;
};

class Steps final : public TrainObserver {
 public:
  void on_start(const TrainReport&) override {}
  void on_step(const StepRecord& record) override { steps.push_back(record); }
  void on_warning(const std::string& text) override { warnings.push_back(text); }
  bool should_stop() override { return std::ssize(steps) == stop_after; }
  std::vector<StepRecord> steps;
  std::vector<std::string> warnings;
  int64_t stop_after = -1;
};

Steps run_policy(const TrainOptions& options) {
  Steps steps;
  train(options, steps);
  return steps;
}

// Rewards of a Python function that wants letters e; each loss learns to write them.
class RewardRisesTest : public ::testing::TestWithParam<const char*> {};

TEST_P(RewardRisesTest, OnATinyModel) {
  ChatRun chat;
  chat.options.policy.reward.python = chat.write_python(R"(
def reward(completion):
    print("what a function prints is not in the way")
    text = completion["completion"]
    share = sum(c == completion["row"]["answer"] for c in text) / max(len(text), 1)
    return {"reward": share, "length": len(text), "is_long": len(text) > 8}
)");
  chat.options.policy.reward.command.clear();
  chat.options.policy.loss = GetParam();
  if (chat.options.policy.loss == "gspo") chat.options.policy.clip_low = chat.options.policy.clip_high = 0.2;
  chat.options.policy.updates = 2;
  chat.options.policy.beta = 0.01;
  chat.options.optimizer.learning_rate = 0.02;
  chat.options.steps = 40;
  chat.options.checkpoint_every = 0;
  const Steps ours = run_policy(chat.options);
  ASSERT_EQ(ours.steps.size(), 40u);
  const auto mean = [&](size_t first, size_t count) {
    double sum = 0;
    for (size_t i = first; i < first + count; ++i) sum += ours.steps[i].more["reward"].get<double>();
    return sum / static_cast<double>(count);
  };
  EXPECT_GT(mean(32, 8), 0.2 + 2 * mean(0, 4)) << mean(0, 4);
  EXPECT_EQ(ours.steps[0].more["kl"], 0.0);  // it begins as the reference
  // On some machine all has been learnt by the last step: its groups are of equal rewards, and none is
  // compared.
  double kl = 0;
  for (const StepRecord& step : ours.steps) kl = std::max(kl, step.more["kl"].get<double>());
  EXPECT_GT(kl, 0.0);
  EXPECT_GE(ours.steps[0].more["reward/length"].get<double>(), 1.0);
  EXPECT_TRUE(ours.steps[0].more.contains("reward/is_long"));
  EXPECT_EQ(ours.steps[38].more["rollout_differing"], 0);
  EXPECT_FALSE(ours.steps[39].more.contains("rollout_differing"));  // the second update of its rollout
}

INSTANTIATE_TEST_SUITE_P(All, RewardRisesTest, ::testing::Values("grpo", "dapo", "gspo"));

TEST(PolicyTest, ARunThatStopsGoesOnToTheSameBytes) {
  ChatRun whole, parts;
  for (ChatRun* chat : {&whole, &parts}) {
    chat->options.steps = 8;
    chat->options.policy.updates = 2;
    chat->options.policy.loss = "dapo";
  }
  parts.options.threads = 2;
  run_policy(whole.options);
  Steps first;
  first.stop_after = 3;  // in the middle of a rollout, which is used up first
  train(parts.options, first);
  EXPECT_EQ(first.steps.size(), 4u);
  parts.options.resume = true;
  const Steps rest = run_policy(parts.options);
  EXPECT_EQ(rest.steps.front().step, 5);
  EXPECT_EQ(model_bytes(whole.options), model_bytes(parts.options));
}

TEST(PolicyTest, PartsAddUpToTheWhole) {
  ChatRun whole, parts;
  parts.options.micro_batch = 3;
  const Steps a = run_policy(whole.options), b = run_policy(parts.options);
  EXPECT_NEAR(a.steps[0].gradient_norm, b.steps[0].gradient_norm, 1e-5 * a.steps[0].gradient_norm);
  EXPECT_EQ(a.steps[0].more["reward"], b.steps[0].more["reward"]);
}

TEST(PolicyTest, GroupsOfEqualRewardsAreDrawnAnew) {
  ChatRun chat;
  chat.options.steps = 1;
  chat.options.policy.loss = "dapo";
  chat.options.policy.resample = 2;
  chat.options.policy.reward.command = "while read -r line; do echo 1; done";
  const Steps steps = run_policy(chat.options);
  EXPECT_EQ(steps.steps[0].more["groups"], 12);
  EXPECT_EQ(steps.steps[0].more["dropped_groups"], 12);
  EXPECT_EQ(steps.steps[0].loss, 0.0);
  ASSERT_EQ(steps.warnings.size(), 1u);
  EXPECT_THAT(steps.warnings[0], ::testing::HasSubstr("nothing to learn"));
}

TEST(PolicyTest, ProgramsThatFailEndTheRunAndItsCheckpointStays) {
  const auto failing_at_step_3 = [](const std::string& then) {
    return "n=0; while read -r line; do n=$((n + 1)); if [ $n -gt 64 ]; then " + then +
           "; fi; echo $((n % 5)); done";
  };
  const std::pair<std::string, std::string> cases[] = {
      {failing_at_step_3("echo 'disk is full' >&2; exit 3"),
       "exit code 3; the last words of its stderr: disk is full"},
      {failing_at_step_3("kill -9 $$"), "ended by signal 9"},
      {failing_at_step_3("echo nan; continue"), R"(it has answered "nan"; a finite number)"},
      {failing_at_step_3("echo 1e999; continue"), "a finite number"},
      {failing_at_step_3("echo '{\"score\": 1}'; continue"), "a finite number"},
      {failing_at_step_3("echo '{\"reward\": 1, \"why\": \"x\"}'; continue"), "a finite number"},
      {failing_at_step_3("echo; continue"), "a finite number"},
  };
  for (const auto& [command, expected] : cases) {
    ChatRun chat;
    chat.options.policy.reward.command = command;
    chat.options.threads = 1;
    EXPECT_QIAO_ERROR(run_policy(chat.options), kIo, "step 3, ", "prompts.jsonl:", "sample 0: reward (n=0",
                      expected);
    EXPECT_TRUE(fs::exists(chat.options.out / "checkpoints" / "step-00000002" / "state.json")) << command;
  }
}

TEST(PolicyTest, AProgramThatTakesTooLongEndsTheRun) {
  ChatRun chat;
  Steps two;
  two.stop_after = 2;
  train(chat.options, two);
  chat.options.resume = true;
  chat.options.policy.reward.command = "n=0; sleep 60";
  chat.options.policy.reward.limit_seconds = 0.4;
  EXPECT_QIAO_ERROR(run_policy(chat.options), kIo, "step 3, ", "sample 0: reward (n=0",
                    "not answered within 400 ms");
  EXPECT_TRUE(fs::exists(chat.options.out / "checkpoints" / "step-00000002" / "state.json"));
}

TEST(PolicyTest, PythonFunctionsThatFailSayWhy) {
  ChatRun chat;
  PolicyOptions& policy = chat.options.policy;
  policy.reward.command.clear();
  policy.reward.python =
      chat.write_python("def reward(completion):\n    return completion['row']['missing']\n");
  EXPECT_QIAO_ERROR(run_policy(chat.options), kIo, "reward.py:reward", "exit code 1", "KeyError: 'missing'");
  policy.reward.python += ":other";
  chat.options.out = chat.folder.path() / "another";
  EXPECT_QIAO_ERROR(run_policy(chat.options), kIo, "reward.py:other", "AttributeError");
  policy.reward.python = (chat.folder.path() / "none.py").string();
  chat.options.out = chat.folder.path() / "third";
  EXPECT_QIAO_ERROR(run_policy(chat.options), kNotFound, "--reward-python", "none.py");
}

TEST(PolicyTest, WrongOptionsNameThemselves) {
  const ChatRun chat;
  const auto with = [&](auto change) {
    TrainOptions options = chat.options;
    change(options, options.policy);
    return options;
  };
  using T = TrainOptions;
  using P = PolicyOptions;
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.group = 1; })), kInvalidInput,
                    "--group is 1; 2 to 4096");
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.max_tokens = 32; })), kInvalidInput,
                    "--max-tokens is 32");
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.temperature = 0; })), kInvalidInput,
                    "--temperature is 0");
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.updates = 3; })), kInvalidInput, "--steps is 4",
                    "multiple of --updates");
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.clip_low = 1; })), kInvalidInput, "--clip-low is 1");
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.beta = NAN; })), kInvalidInput, "--kl is nan");
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.reward.python = "x.py"; })), kInvalidInput,
                    "two rewards");
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.reward.command = ""; })), kInvalidInput, "no reward");
  EXPECT_QIAO_ERROR(run_policy(with([](T&, P& p) { p.tool_command = "cat"; })), kInvalidInput, "--tools");
  EXPECT_QIAO_ERROR(run_policy(with([](T& o, P&) { o.data.sequence = 1000; })), kInvalidInput,
                    "--seq is 1000", "512");
  EXPECT_QIAO_ERROR(
      run_policy(with([](T& o, P&) { o.init = testing::golden_folder() / "training" / "llama" / "init"; })),
      kNotFound, "tokenizer");
}

TEST(PolicyTest, BadPromptsAreToldAndSkipped) {
  ChatRun chat;
  const fs::path data = chat.folder.path() / "rows.jsonl";
  write_file_atomically(
      data, "{\"prompt\": 5}\n{\"tokens\": [1, 320]}\n{\"prompt\": \"" + std::string(400, 'x') +
                "\"}\n[1]\n{\"messages\": [{\"content\": \"x\"}]}\n{\"tok\n{\"prompt\": \"The sky\"}\n");
  chat.options.data.files = {data};
  chat.options.data.shuffle = false;
  chat.options.steps = 1;
  const Steps steps = run_policy(chat.options);
  ASSERT_EQ(steps.warnings.size(), 6u);
  const char* expected[] = {"\"prompt\"",       "tokens holds 320", "a prompt of", "an object was expected",
                            "messages[0].role", "rows.jsonl"};
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_THAT(steps.warnings[i], ::testing::HasSubstr(data.string() + ":" + std::to_string(i + 1) + ": "));
    EXPECT_THAT(steps.warnings[i], ::testing::HasSubstr(expected[i]));
  }
}

}  // namespace
}  // namespace qiao::train
