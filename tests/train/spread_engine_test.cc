// The engine on a model that several ranks train together: rollouts whose log-probabilities are training's,
// bit for bit, the very same rows on all of a group, samples, and what happens where a program or a rank
// fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "base/file.h"
#include "base/json.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/golden_run.h"
#include "train/policy_world.h"
#include "train/taught.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

// As the completion's length.
constexpr const char* kByLength =
    R"(while read -r line; do line=${line#*'"completion":"'}; line=${line%%'"'*}; echo ${#line}; done)";

// A model of words that is taught by rewards, its prompts of many lengths.
struct SpreadPolicyRun {
  explicit SpreadPolicyRun(const std::string& model = "llama", const std::string& dtype = "f32") {
    std::string rows;
    int64_t next = 3;
    for (const int length : {1, 2, 7, 8, 9, 17, 33, 40}) {
      Json tokens = Json::array();
      for (int i = 0; i < length; ++i) tokens.push_back(next = (next * 7 + 5) % 96);
      rows += dump_json({{"tokens", tokens}}) + "\n";
    }
    options.init = testing::model_of_words(model, folder.path() / "init");
    if (dtype == "fp8") {  // weights that are drawn, of heads that fill two blocks
      Json config = parse_json(read_file(options.init / "config.json"), "config.json");
      config.update({{"num_attention_heads", 8}, {"num_key_value_heads", 4}, {"intermediate_size", 256}});
      write_file_atomically(options.init / "config.json", dump_json(config));
      fs::remove(options.init / "model.safetensors");
    }
    options.data.files = {folder.write("prompts.jsonl", rows)};
    options.data.sequence = 56;
    options.data.seed = 11;
    options.mode = "grpo";
    options.dtype = dtype;
    options.batch = 4;
    options.micro_batch = 3;
    options.steps = 4;
    options.schedule = "constant";
    options.checkpoint_every = 2;
    options.policy.group = 3;
    options.policy.max_tokens = 12;
    options.policy.updates = 2;
    options.policy.slots = 5;  // some wait while others are drawn
    options.policy.reward.command = kByLength;
  }
  // Rank 0's of so many ranks, groups of `tensor_parallel` of them. One process' bytes are those of four
  // virtual ranks, too.
  Recorder trained(const std::string& name, int size, int64_t tensor_parallel) {
    options.out = folder.path() / name;
    options.tensor_parallel = tensor_parallel;
    options.virtual_ranks = 4;
    return run_in_threads(options, size);
  }

  testing::TemporaryDirectory folder;
  TrainOptions options;
};

struct SpreadPolicyCase {
  const char* name;
  const char* model;
  int size;
  const char* dtype = "f32";
  const char* loss = "grpo";
  double beta = 0;
  int64_t lora_rank = 0;
};

class SpreadPolicyTest : public ::testing::TestWithParam<SpreadPolicyCase> {};

// Were a bit of a token other than the rollout's, the run would end with an error
// (PolicyTest.DifferencesAreCaught). Rewards of the same completions are the same; what is computed is within
// the bounds of spread training (SpreadTrainingTest).
TEST_P(SpreadPolicyTest, TeachesAsOneProcess) {
  const SpreadPolicyCase& c = GetParam();
  SpreadPolicyRun run(c.model, c.dtype);
  run.options.policy.loss = c.loss;
  run.options.policy.beta = c.beta;
  run.options.lora.rank = c.lora_rank;
  const Recorder one = run.trained("one", 1, 1), spread = run.trained("spread", c.size, c.size);
  ASSERT_EQ(one.steps.size(), 4u);
  ASSERT_EQ(spread.steps.size(), 4u);
  for (const size_t rollout : {0, 2}) {
    EXPECT_EQ(spread.steps[rollout].more["rollout_differing"], 0);
    EXPECT_EQ(spread.steps[rollout].more["rollout_kl"], 0.0);
    EXPECT_GT(spread.steps[rollout].more["rollout_compared"].get<int64_t>(), 20);
  }
  const bool is_f32 = std::string_view(c.dtype) == "f32";
  const StepRecord &a = one.steps[0], &b = spread.steps[0];
  if (is_f32) {
    for (const char* figure : {"reward", "reward_std", "completion_tokens", "finished", "groups"})
      EXPECT_EQ(b.more[figure], a.more[figure]) << figure;
    EXPECT_NEAR(b.loss, a.loss, 2e-6);
    EXPECT_NEAR(b.gradient_norm, a.gradient_norm, 2e-5 * a.gradient_norm);
  }
  EXPECT_GT(b.gradient_norm, 1e-3);
  EXPECT_GT(b.more["reward_std"].get<double>(), 0);
  if (c.beta > 0) {
    EXPECT_GT(spread.steps[3].more["kl"].get<double>(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SpreadPolicyTest,
                         ::testing::Values(SpreadPolicyCase{"llama_2", "llama", 2},
                                           SpreadPolicyCase{"llama_4", "llama", 4},
                                           SpreadPolicyCase{"windows_2", "gemma3", 2, "f32", "dapo"},
                                           SpreadPolicyCase{"reference_2", "qwen3", 2, "f32", "gspo", 0.1},
                                           SpreadPolicyCase{"experts_2", "qwen3-moe", 2},
                                           SpreadPolicyCase{"bf16_2", "gemma3", 2, "bf16"},
                                           SpreadPolicyCase{"fp8_2", "fp8", 2, "fp8"},
                                           SpreadPolicyCase{"adapter_2", "llama", 2, "f32", "grpo", 0.1, 4},
                                           SpreadPolicyCase{"adapter_4", "llama", 4, "bf16", "grpo", 0.1, 4}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SpreadPolicyRunTest, NoNumberOfGroupsChangesAByte) {
  SpreadPolicyRun run;
  run.options.policy.loss = "dapo";  // groups of equal rewards are drawn anew
  run.options.policy.reward.command = "while read -r line; do echo $((${#line} % 2)); done";
  run.options.policy.beta = 0.1;
  const Recorder one = run.trained("2", 2, 2);
  const std::string model = model_bytes(run.options);
  const auto checkpoint = [&] {
    return read_file(run.options.out / "checkpoints" / "step-00000004" / "state.json");
  };
  const std::string state = checkpoint();
  for (const int size : {4, 8}) {
    const Recorder other = run.trained(std::to_string(size), size, 2);
    ASSERT_EQ(other.steps.size(), one.steps.size());
    for (size_t i = 0; i < one.steps.size(); ++i) {
      EXPECT_EQ(other.steps[i].loss, one.steps[i].loss);
      EXPECT_EQ(other.steps[i].gradient_norm, one.steps[i].gradient_norm);
      for (const char* figure : {"reward", "entropy", "completion_tokens", "clipped", "kl", "dropped_groups"})
        EXPECT_EQ(other.steps[i].more[figure], one.steps[i].more[figure]) << figure;
    }
    EXPECT_TRUE(model_bytes(run.options) == model) << size;
    EXPECT_EQ(checkpoint(), state) << size;  // with digests of all of it
  }
}

TEST(SpreadPolicyRunTest, ARunGoesOnToTheSameBytes) {
  SpreadPolicyRun run;
  run.trained("whole", 2, 2);
  const std::string whole = model_bytes(run.options);
  run.options.steps = 2;
  run.trained("parts", 4, 2);
  run.options.steps = 4, run.options.resume = true;
  EXPECT_EQ(run.trained("parts", 2, 2).steps.size(), 2u);
  EXPECT_TRUE(model_bytes(run.options) == whole);
}

TEST(SpreadPolicyRunTest, ADryRunTellsWhatItTakes) {
  SpreadPolicyRun run;
  run.options.dry_run = true;
  const Recorder one = run.trained("one", 1, 1), spread = run.trained("spread", 2, 2);
  EXPECT_EQ(spread.report.parameters, one.report.parameters);
  EXPECT_GT(spread.report.tokens_per_second, 0);
  EXPECT_LT(spread.report.memory.weights, one.report.memory.weights);
  EXPECT_LT(spread.report.memory.activations, one.report.memory.activations);
  EXPECT_FALSE(fs::exists(run.options.out));
}

// The first of the group that it is in with the program's own line, and the others find that one gone.
TEST(SpreadPolicyRunTest, AProgramThatFailsEndsAllRanks) {
  for (const int size : {2, 4}) {
    SpreadPolicyRun run;
    run.options.tensor_parallel = 2, run.options.virtual_ranks = 4, run.options.threads = 1;
    run.options.out = run.folder.path() / "run";
    run.options.policy.reward.command =
        "n=0; while read -r line; do n=$((n + 1)); if [ $n -gt 8 ]; then echo full >&2; exit 3; fi; echo "
        "$n; done";
    std::atomic<int> told = 0, ended = 0;
    EXPECT_QIAO_ERROR(in_a_group(size,
                                 [&](Communicator& communicator) {
                                   Recorder recorder;
                                   try {
                                     train(run.options, recorder, communicator);
                                   } catch (const Error& error) {
                                     ++ended;
                                     told += error.kind() == ErrorKind::kIo ? 1 : 0;
                                     throw;
                                   }
                                 }),
                      kIo, "reward (n=0", "exit code 3; the last words of its stderr: full");
    EXPECT_EQ(ended, size);
    EXPECT_GE(told, 1);
  }
}

TEST(SpreadPolicyRunTest, WhatIsMissingIsToldAtTheStart) {
  SpreadPolicyRun run;
  run.options.policy.reward.command.clear();
  run.options.policy.reward.python = "/no/such/file.py";
  EXPECT_QIAO_ERROR(run.trained("python", 2, 2), kNotFound, "--reward-python", "file.py");
  run.options.policy.reward = {.command = kByLength, .python = ""};
  run.options.sample = {.every = 2, .prompt = "w1 w2", .tokens = 1 << 20};
  EXPECT_QIAO_ERROR(run.trained("sample", 2, 2), kInvalidInput, "--sample-tokens is 1048576");
}

// A rank that dies as it is to receive for the last time.
class Mortal final : public Communicator {
 public:
  Mortal(Communicator& own, int64_t receives) : own_(own), left_(receives) {}
  int64_t left() const { return left_; }
  int rank() const override { return own_.rank(); }
  int size() const override { return own_.size(); }
  std::string name(int rank) const override { return own_.name(rank); }
  int sharing_cores() const override { return own_.sharing_cores(); }
  int sharing_host() const override { return own_.sharing_host(); }
  int place_on_host() const override { return own_.place_on_host(); }
  void send(int to, std::span<const std::byte> bytes) override { own_.send(to, bytes); }
  void receive(int from, std::span<std::byte> bytes) override {
    if (--left_ <= 0) throw Error(ErrorKind::kIo, "dead");
    own_.receive(from, bytes);
  }
  void finish() override { own_.finish(); }
  void end_all(const std::string& why) override { own_.end_all(why); }

 private:
  Communicator& own_;
  int64_t left_;
};

// Wherever it was: at the start, in a step of a rollout or a sample, or in training. All end, and who leads
// says that one is lost.
TEST(SpreadPolicyRunTest, AFollowerThatIsLostAnywhereEndsAll) {
  SpreadPolicyRun run;
  run.options.virtual_ranks = 1, run.options.threads = 1, run.options.steps = 2;
  run.options.policy.slots = 1;  // as many steps in each run
  run.options.sample = {.every = 1, .prompt = "w1", .tokens = 3};
  int64_t runs = 0;
  constexpr int64_t kMost = INT64_MAX;
  const auto train_until = [&](int size, int64_t receives) {
    run.options.tensor_parallel = size;
    run.options.out = run.folder.path() / std::to_string(++runs);
    int64_t received = 0;
    in_a_group(size, [&](Communicator& communicator) {
      Recorder recorder;
      Mortal own(communicator, communicator.rank() == size - 1 ? receives : kMost);
      train(run.options, recorder, own);
      if (communicator.rank() == size - 1) received = receives - own.left();
    });
    return received;
  };
  for (const int size : {2, 4}) {
    const int64_t all = train_until(size, kMost);
    EXPECT_GT(all, 100);
    for (int64_t part = 1; part < 12; ++part) {
      try {
        train_until(size, all * part / 12);
        ADD_FAILURE() << part << " of 12, " << size;
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), ::testing::ContainsRegex("rank [123] is lost"))
            << part << " of 12, " << size;
      }
    }
  }
}

TEST(SpreadSampleTest, OneProcesssTextByRankZeroAlone) {
  SpreadPolicyRun run;  // its model
  run.options.mode = "pretrain";
  run.options.micro_batch = 0;
  run.options.data.files = {golden() / "data.jsonl"};
  run.options.data.sequence = 32;
  run.options.sample = {.every = 2, .prompt = "w1 w2 w3", .tokens = 9};
  for (const int64_t lora_rank : {0, 4}) {
    run.options.lora.rank = lora_rank;
    const std::string kind = std::to_string(lora_rank);
    const Recorder one = run.trained("one " + kind, 1, 1);
    ASSERT_EQ(one.samples.size(), 2u);
    EXPECT_NE(one.samples[0], "");
    for (const auto& [size, tensor_parallel] : {std::pair{2, 2}, {4, 4}, {4, 2}}) {
      const Recorder spread =
          run.trained(fmt::format("{} {} {}", kind, size, tensor_parallel), size, tensor_parallel);
      EXPECT_EQ(spread.samples, one.samples) << size << " " << tensor_parallel;
    }
    // Training goes on as if there had been none.
    const fs::path sampled = run.options.out;
    run.options.sample.every = 0;
    run.trained("none " + kind, 4, 2);
    const char* const file = lora_rank > 0 ? "model/adapter_model.safetensors" : "model/model.safetensors";
    EXPECT_TRUE(read_file(sampled / file) == read_file(run.options.out / file));
    run.options.sample.every = 2;
  }
}

TEST(TaughtTest, IsWhatItWasBehindItsBytes) {
  Taught first, second;
  first.trajectory.tokens = {5, 6, 7, 8};
  first.trajectory.logprob = {0, 0, -1.5f, -0.25f};
  first.trajectory.drawn = {false, false, true, true};
  first.trajectory.prompt = 3, first.trajectory.index = 2, first.trajectory.prompt_tokens = 2;
  first.advantage = -0.75;
  second.trajectory.tokens = {9};
  second.trajectory.logprob = {0};
  second.trajectory.drawn = {false};
  const auto again = taught_of(bytes_of({{}, {first, second}, {}}));
  ASSERT_EQ(again.size(), 3u);
  EXPECT_TRUE(again[0].empty() && again[2].empty());
  ASSERT_EQ(again[1].size(), 2u);
  const auto& [trajectory, advantage, reference] = again[1][0];
  EXPECT_EQ(trajectory.tokens, first.trajectory.tokens);
  EXPECT_EQ(trajectory.logprob, first.trajectory.logprob);
  EXPECT_EQ(trajectory.drawn, first.trajectory.drawn);
  EXPECT_EQ(trajectory.drawn_tokens, 2);
  EXPECT_EQ(trajectory.prompt, 3u);
  EXPECT_EQ(trajectory.index, 2);
  EXPECT_EQ(trajectory.prompt_tokens, 2);
  EXPECT_EQ(advantage, -0.75);
  EXPECT_TRUE(reference.empty());
  EXPECT_EQ(again[1][1].trajectory.tokens, second.trajectory.tokens);
}

}  // namespace
}  // namespace qiao::train
