// A step shared out over ranks leaves the same bytes for any number of them.
#include "train/ranks.h"

#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "base/file.h"
#include "base/json.h"
#include "support/expect_error.h"
#include "train/golden_run.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

TEST(DealOutTest, BalancesWholeTensors) {
  const std::vector<int64_t> counts = {100, 5, 5, 5, 60, 40, 90, 3};
  const std::vector<int64_t> owners = deal_out(counts, 4);
  EXPECT_EQ(owners, (std::vector<int64_t>{0, 3, 3, 3, 2, 3, 1, 3}));
  EXPECT_EQ(deal_out(counts, 1), std::vector<int64_t>(counts.size(), 0));
}

struct Shape {
  const char* name;
  const char* model;
  const char* dtype;
  const char* optimizer;
  const char* states;
};

class RanksTest : public ::testing::TestWithParam<Shape> {
 protected:
  TrainOptions options(const std::string& name) const {
    TrainOptions made = as_pytorch(folder_.path() / name, GetParam().model);
    made.dtype = GetParam().dtype;
    made.optimizer.kind = GetParam().optimizer;
    made.optimizer.adam_states = GetParam().states;
    made.batch = 8;
    made.micro_batch = 1;
    made.steps = 4;
    made.checkpoint_every = 2;
    return made;
  }
  const testing::TemporaryDirectory folder_;
};

TEST_P(RanksTest, OneTwoAndFourLeaveTheSameBytes) {
  const Recorder one = run_in_threads(options("1"), 1);
  EXPECT_EQ(files_of(folder_.path() / "1" / "checkpoints").size(), 2u * 5);
  for (const int size : {2, 4}) {
    const Recorder other = run_in_threads(options(std::to_string(size)), size);
    ASSERT_EQ(other.steps.size(), 4u);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(other.steps[i].loss, one.steps[i].loss);
      EXPECT_EQ(other.steps[i].gradient_norm, one.steps[i].gradient_norm);
    }
    expect_same_run(folder_.path() / "1", folder_.path() / std::to_string(size));
  }
}

TEST_P(RanksTest, ARunGoesOnWithAnotherNumber) {
  run_in_threads(options("whole"), 1);
  TrainOptions parts = options("parts");
  parts.steps = 2;
  run_in_threads(parts, 4);
  parts.steps = 4, parts.resume = true;
  EXPECT_EQ(run_in_threads(parts, 2).steps.front().step, 3);
  expect_same_run(folder_.path() / "whole", folder_.path() / "parts");
}

INSTANTIATE_TEST_SUITE_P(All, RanksTest,
                         ::testing::Values(Shape{"llama", "llama", "f32", "adamw", "f32"},
                                           Shape{"experts", "qwen3-moe-balanced", "bf16", "adamw", "8bit"},
                                           Shape{"fp8", "fp8", "fp8", "adamw", "f32"},
                                           Shape{"muon", "gemma3", "f32", "muon", "bf16"}),
                         [](const auto& info) { return std::string(info.param.name); });

// Nearly what one gradient gives: only the order of its sums is another.
TEST(RanksOfAPlainRunTest, AreWhatAPlainRunIs) {
  const testing::TemporaryDirectory folder;
  TrainOptions plain = as_pytorch(folder.path() / "plain"), shared = as_pytorch(folder.path() / "shared");
  plain.steps = shared.steps = 5;
  const Recorder a = run(plain), b = run_in_threads(shared, 2);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(a.steps[i].loss, b.steps[i].loss, 2e-6 * a.steps[i].loss);
    EXPECT_NEAR(a.steps[i].gradient_norm, b.steps[i].gradient_norm, 1e-5 * a.steps[i].gradient_norm);
  }
  // And one goes on with the other's checkpoints.
  plain.steps = shared.steps = 6;
  plain.resume = shared.resume = true;
  plain.out.swap(shared.out);
  EXPECT_EQ(run(plain).steps.front().step, 6);
  EXPECT_EQ(run_in_threads(shared, 4).steps.front().step, 6);
}

// Numbers go from one to another in pieces of 2^18.
TEST(RanksOfAPlainRunTest, TensorsOfSeveralPiecesLeaveTheSameBytes) {
  constexpr int64_t kVocabulary = 5600, kWidth = 48;  // a piece, and a few numbers
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  std::vector<NamedValues> tensors = read_tensors(options.init / "model.safetensors");
  for (NamedValues& tensor : tensors) {
    if (tensor.name != "model.embed_tokens.weight" && tensor.name != "lm_head.weight") continue;
    tensor.shape[0] = kVocabulary;
    const size_t before = tensor.values.size();
    tensor.values.resize(static_cast<size_t>(kVocabulary * kWidth));
    for (size_t i = before; i < tensor.values.size(); ++i) tensor.values[i] = tensor.values[i - before];
  }
  const fs::path init = folder.path() / "init";
  write_model(init, options.init, tensors, DType::kF32);
  Json config = parse_json(read_file(init / "config.json"), "config.json");
  config["vocab_size"] = kVocabulary;
  write_file_atomically(init / "config.json", dump_json(config, 2));
  options.init = init, options.steps = 2;
  for (const int size : {1, 4}) {
    options.out = folder.path() / std::to_string(size);
    run_in_threads(options, size);
  }
  expect_same_run(folder.path() / "1", folder.path() / "4");
}

TEST(RanksOfAPlainRunTest, ABatchThatIsNoMultipleOfFourIsRefused) {
  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.batch = 6;
  EXPECT_QIAO_ERROR(run_in_threads(options, 2), kInvalidInput, "--batch is 6", "multiple of 4");
  options.batch = 4, options.virtual_ranks = 2;
  EXPECT_QIAO_ERROR(run(options), kInvalidInput, "--virtual-ranks is 2", "1 or 4");
}

TEST(RanksOfAPlainRunTest, ThreeProcessesAreRefused) {
  const testing::TemporaryDirectory folder;
  EXPECT_QIAO_ERROR(run_in_threads(as_pytorch(folder.path() / "run"), 3), kInvalidInput,
                    "3 processes were started; 1, 2 or 4 were expected");
}

TEST(RanksOfAPlainRunTest, OtherSettingsOnAnotherRankAreRefused) {
  const auto agree = [](const std::string& first, const std::string& second) {
    auto communicators = make_thread_communicators(3, 60);
    std::vector<std::thread> others;
    for (size_t rank = 1; rank < 3; ++rank) {
      others.emplace_back([&, rank] {
        agree_on_settings(*communicators[rank], rank == 1 ? first : second);
        communicators[rank]->finish();
      });
    }
    std::string refusal;
    try {
      agree_on_settings(*communicators[0], first);
    } catch (const Error& error) {
      refusal = error.what();
    }
    communicators[0]->finish();
    for (std::thread& other : others) other.join();
    return refusal;
  };
  EXPECT_EQ(agree("lr = 0.1\nseed = 0\n", "lr = 0.1\nseed = 0\n"), "");
  EXPECT_EQ(
      agree("lr = 0.1\nthreads = 1\ndevice = \"cpu\"\n", "device = \"cuda:1\"\nlr = 0.1\nthreads = 2\n"), "");
  EXPECT_EQ(
      agree("lr = 0.1\nseed = 0\n", "lr = 0.2\nseed = 0\n"),
      "rank 2 trains with lr = 0.2, and rank 0 with lr = 0.1: start all processes with the same settings");
  EXPECT_EQ(agree("lr = 0.1\n", "lr = 0.1\nclip = 0\n"),
            "rank 2 trains with clip = 0, and rank 0 with no such setting: start all processes with the same "
            "settings");
  EXPECT_EQ(agree("", ""), "");

  const testing::TemporaryDirectory folder;
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.settings = "tensor-parallel = 2\n", options.tensor_parallel = 2;
  TrainOptions alone = options, elsewhere = options;
  alone.settings = "tensor-parallel = 1\n", alone.tensor_parallel = 1;
  elsewhere.out = folder.path() / "other";
  const std::pair<TrainOptions, std::string> cases[] = {{alone, "tensor-parallel = 1"},
                                                        {elsewhere, "/other, and rank 0 with out = "}};
  for (const auto& [theirs, expected] : cases) {
    auto communicators = make_thread_communicators(2, 60);
    std::thread other([&, own = std::move(communicators[1])]() mutable {
      Recorder recorder;
      EXPECT_QIAO_ERROR(train(theirs, recorder, *own), kUnavailable, "rank 0 is lost");
    });
    Recorder first;
    EXPECT_QIAO_ERROR(train(options, first, *communicators[0]), kInvalidInput, expected);
    communicators[0].reset();
    other.join();
  }
}

TEST(RanksOfAPlainRunTest, AnyRankMayStopAllOfThem) {
  const testing::TemporaryDirectory folder;
  auto communicators = make_thread_communicators(2, 60);
  Recorder first, second;
  second.stop_after = 0;  // which hears of no step
  TrainOptions options = as_pytorch(folder.path() / "run");
  options.threads = 1;
  std::thread other([&] { train(options, second, *communicators[1]); });
  train(options, first, *communicators[0]);
  other.join();
  EXPECT_EQ(first.steps.size(), 1u);
}

// One of two groups, or of the two that train one model.
TEST(RanksOfAPlainRunTest, ALostRankEndsTheRunAndLeavesItsCheckpoint) {
  class Dies final : public TrainObserver {
   public:
    void on_start(const TrainReport&) override {}
    void on_step(const StepRecord&) override {}
    void on_warning(const std::string&) override {}
    void on_sample(int64_t, const std::string&, const std::string&) override {}
    void on_profile(const std::string&) override {}
    bool should_stop() override {
      if (++steps_ == 5) throw Error(ErrorKind::kIo, "dead");
      return false;
    }

   private:
    int steps_ = 0;
  };
  for (const int64_t tensor_parallel : {1, 2}) {
    const testing::TemporaryDirectory folder;
    TrainOptions options = as_pytorch(folder.path() / "run");
    options.threads = 1, options.checkpoint_every = 2, options.steps = 1000;
    options.tensor_parallel = tensor_parallel;
    Dies dies;
    auto communicators = make_thread_communicators(2, 60);
    std::thread other([&] {
      const auto own = std::move(communicators[1]);
      EXPECT_QIAO_ERROR(train(options, dies, *own), kIo, "dead");
    });
    Recorder first;
    EXPECT_QIAO_ERROR(train(options, first, *communicators[0]), kUnavailable, "rank 1 is lost");
    other.join();
    options.steps = 5, options.resume = true, options.tensor_parallel = 1;
    // That of step 4 was being written beside the run, and is whole or gone; that of step 2 was waited for.
    const int64_t next = run(options).steps.front().step;
    EXPECT_TRUE(next == 5 || next == 3) << next;
  }
}

// One model over groups of two.
class SpreadRunTest : public RanksTest {
 protected:
  TrainOptions spread(const std::string& name, int64_t tensor_parallel = 2) const {
    TrainOptions made = options(name);
    made.tensor_parallel = tensor_parallel;
    return made;
  }
};

TEST_P(SpreadRunTest, NoNumberOfGroupsChangesAByte) {
  const Recorder one = run_in_threads(spread("2"), 2);
  ASSERT_EQ(one.steps.size(), 4u);
  EXPECT_EQ(files_of(folder_.path() / "2" / "checkpoints").size(), 2u * 5);
  for (const int size : {2, 4, 8}) {
    const std::string name = std::to_string(size) + " again";
    const Recorder other = run_in_threads(spread(name), size);
    ASSERT_EQ(other.steps.size(), 4u);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(other.steps[i].loss, one.steps[i].loss);
      EXPECT_EQ(other.steps[i].gradient_norm, one.steps[i].gradient_norm);
    }
    expect_same_run(folder_.path() / "2", folder_.path() / name);
  }
}

TEST_P(SpreadRunTest, ARunGoesOnOverAnyNumber) {
  const Recorder whole = run_in_threads(spread("whole"), 2);
  for (const int64_t tensor_parallel : {2, 1, 4}) {
    SCOPED_TRACE(tensor_parallel);
    TrainOptions parts = spread(fmt::format("parts {}", tensor_parallel));
    parts.steps = 2;
    run_in_threads(parts, 4);
    parts.steps = 4, parts.resume = true, parts.tensor_parallel = tensor_parallel;
    const Recorder rest = run_in_threads(parts, 4);
    ASSERT_EQ(rest.steps.size(), 2u);
    EXPECT_EQ(rest.steps[0].step, 3);
    const double exact =
        parts.dtype == "f32" ? 2e-6 : 0x1p-9;  // F32 sums, or BF16 roundings, of another side
    EXPECT_NEAR(rest.steps[0].loss, whole.steps[2].loss, exact * whole.steps[2].loss);
    if (tensor_parallel == 2) expect_same_run(folder_.path() / "whole", parts.out);
  }
}

// At a rate of 0 the model stays what it is, to the byte.
TEST_P(SpreadRunTest, TheModelIsWrittenAsByOneProcess) {
  TrainOptions one = spread("one", 1), parts = spread("parts", 4);
  for (TrainOptions* each : {&one, &parts}) each->optimizer.learning_rate = 0, each->steps = 1;
  run_in_threads(one, 1);
  run_in_threads(parts, 4);
  expect_same_run(one.out / "model", parts.out / "model");
  const Json state = parse_json(read_file(one.out / "checkpoints" / "step-00000001" / "state.json"), "state");
  EXPECT_EQ(state["sha256"].size(), 4u);
  for (const auto& [file, sha256] : state["sha256"].items()) {
    const auto tensors = [&](const TrainOptions& run) {
      return open_safetensors(run.out / "checkpoints" / "step-00000001" / file,
                              TypePolicy::kRefuseUnsupported)
          .tensors;
    };
    const auto expected = tensors(one), got = tensors(parts);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].name, expected[i].name);
      EXPECT_EQ(got[i].dtype, expected[i].dtype);
      EXPECT_EQ(got[i].shape, expected[i].shape);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SpreadRunTest,
                         ::testing::Values(Shape{"biases", "llama", "f32", "adamw", "f32"},
                                           Shape{"experts", "qwen3-moe-balanced", "bf16", "adamw", "bf16"},
                                           Shape{"tied", "gemma3", "f32", "adamw", "f32"},
                                           Shape{"codes", "llama", "bf16", "adamw", "8bit"},
                                           Shape{"muon", "qwen3-moe-balanced", "f32", "muon", "bf16"}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SpreadOptionsTest, WhatDoesNotGoIsRefusedInOneLine) {
  const testing::TemporaryDirectory folder;
  const auto options = [&](int64_t tensor_parallel) {
    TrainOptions made = as_pytorch(folder.path() / "run");
    made.tensor_parallel = tensor_parallel;
    return made;
  };
  EXPECT_QIAO_ERROR(run(options(0)), kInvalidInput,
                    "--tensor-parallel is 0; a number from 1 to 1024 was expected");
  EXPECT_QIAO_ERROR(run(options(2)), kInvalidInput, "--tensor-parallel is 2, and 1 process was started",
                    "mpirun -np 2 qiao train");
  EXPECT_QIAO_ERROR(run_in_threads(options(3), 4), kInvalidInput,
                    "--tensor-parallel is 3, and 4 processes were started");
  EXPECT_QIAO_ERROR(run_in_threads(options(1), 3), kInvalidInput, "3 processes were started; 1, 2 or 4");
  EXPECT_QIAO_ERROR(run_in_threads(options(2), 6), kInvalidInput,
                    "3 groups of 2 processes (--tensor-parallel) were started; 1, 2 or 4");
  // Four heads and two for keys and values.
  EXPECT_QIAO_ERROR(run_in_threads(options(3), 3), kUnsupported, "cannot be spread over 3 processes",
                    "numbers of processes that it can be spread over: 1, 2, 4");
  EXPECT_FALSE(fs::exists(folder.path() / "run" / "metrics.jsonl"));
}

}  // namespace
}  // namespace qiao::train
