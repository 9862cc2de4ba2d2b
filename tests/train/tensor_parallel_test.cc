// One model trained by several ranks together: losses and gradients are one process', and what several ranks
// have is the same bits on all of them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>

#include "base/file.h"
#include "base/json.h"
#include "models/decoder_training.h"
#include "models/weights.h"
#include "support/expect_error.h"
#include "train/golden_run.h"
#include "train/ranks.h"
#include "train/trained_model.h"

namespace qiao::train {
namespace {

// Of one step: the whole of every gradient, and each rank's part of it.
struct SpreadGradients {
  double loss = 0, norm = 0;
  std::vector<float> logprob;
  std::map<std::string, std::vector<float>> whole;
  std::vector<std::map<std::string, std::vector<float>>> parts;  // by rank, of what is whole on it
};

// Documents of different lengths, the last of one token; every third label is none.
struct SpreadBatch {
  std::vector<int32_t> tokens, positions, labels, starts = {0};
  explicit SpreadBatch(int32_t vocabulary) {
    for (const int32_t length : {9, 17, 4, 1}) {
      for (int32_t i = 0; i < length; ++i) {
        tokens.push_back((7 * i * i + 5 * length + 3 * static_cast<int32_t>(tokens.size())) % vocabulary);
        positions.push_back(i);
        labels.push_back(tokens.size() % 3 == 0 ? -1 : (11 * i + length) % vocabulary);
      }
      starts.push_back(static_cast<int32_t>(tokens.size()));
    }
  }
};

TrainOptions spread_options(const std::filesystem::path& init, int size, const std::string& chip) {
  TrainOptions options;
  options.init = init;
  options.tensor_parallel = size;
  options.device = chip;
  options.threads = 1;
  return options;
}

// How a step is computed: all the same numbers, but for the order of some sums.
struct SpreadPass {
  Recompute recompute = Recompute::kOff;
  bool slopes_first = true;
};

SpreadGradients gradients_of(const std::filesystem::path& init, int size, const std::string& chip,
                             const SpreadPass& pass = {}) {
  SpreadGradients made;
  made.parts.resize(static_cast<size_t>(size));
  in_a_group(size, [&](Communicator& communicator) {
    const TrainOptions options = spread_options(init, size, chip);
    Ranks ranks(communicator, 1, size);
    TrainedModel model(options, communicator, ranks);
    model.prepare();
    const SpreadBatch rows(static_cast<int32_t>(model.decoder->config().vocabulary_size));
    const PackedBatch batch = {rows.tokens, rows.positions, rows.labels, rows.starts};
    DecoderTraining passes(*model.decoder, std::ssize(rows.tokens) + 5, 6, pass.recompute,
                           {.slopes_first = pass.slopes_first});
    // Uneven, and -1 together, as a mean's are: what the bound of gradients is for.
    std::vector<float> slopes(rows.tokens.size());
    float sum = 0;
    for (size_t i = 0; i < slopes.size(); ++i)
      if (rows.labels[i] >= 0) sum += slopes[i] = static_cast<float>(i % 5 + 1);
    for (float& slope : slopes) slope /= -sum;
    Parameters& parameters = *model.parameters;
    parameters.begin_gradient(0);
    const std::span<const float> logprob =
        pass.slopes_first ? passes.forward(batch, slopes, parameters) : passes.forward(batch);
    const double of_imbalance = model.decoder->config().router_aux_loss_coef > 0 ? 0.5 : 0;
    double loss = passes.imbalance() * of_imbalance;
    for (size_t i = 0; i < slopes.size(); ++i) loss += static_cast<double>(slopes[i]) * logprob[i];
    passes.backward(slopes, parameters, of_imbalance);
    parameters.end_gradient(0);
    ranks.reduce(*model.backend, parameters);
    const double norm = norm_of(ranks.gradient_squares(parameters));
    for (size_t i = 0; i < parameters.tensors().size(); ++i) {
      const Parameters::Named& tensor = parameters.tensors()[i];
      std::vector<float> own(static_cast<size_t>(tensor.count));
      parameters.read(Parameters::Kind::kGradient, tensor, own);
      // Of what one rank keeps its gradient alone is whole.
      const bool is_kept_by_one = ranks.keeper(i) && tensor.is_summed;
      auto& parts = made.parts[static_cast<size_t>(communicator.rank())];
      if (tensor.part.is_whole() && !is_kept_by_one) parts[tensor.name] = own;
      if (size == 1) {
        made.whole[tensor.name] = own;
        continue;
      }
      std::vector<float> whole(static_cast<size_t>(tensor.runs * tensor.part.whole_count()));
      const std::span<const std::byte> part = std::as_bytes(std::span(own));
      const std::span<std::byte> all = std::as_writable_bytes(std::span(whole));
      ranks.keeper(i) ? ranks.hand_over(i, part, all) : ranks.gather(i, sizeof(float), part, all);
      if (communicator.rank() == 0) made.whole[tensor.name] = whole;
    }
    // A step: what several ranks have stays the same.
    model.optimizer->update(1e-2, 1e-2, 1.0, 1);
    ranks.publish(parameters);
    for (const Parameters::Named& tensor : parameters.tensors()) {
      std::vector<float> master(static_cast<size_t>(tensor.count));
      parameters.read(Parameters::Kind::kMaster, tensor, master);
      if (tensor.part.is_whole())
        made.parts[static_cast<size_t>(communicator.rank())]["after " + tensor.name] = master;
    }
    if (communicator.rank() > 0) return;
    made.loss = loss, made.norm = norm;
    made.logprob.assign(logprob.begin(), logprob.end());
  });
  return made;
}

struct SpreadTraining {
  const char* model;
  int size;
  const char* chip;
};

class SpreadTrainingTest : public ::testing::TestWithParam<SpreadTraining> {
 protected:
  std::filesystem::path init(const std::string& model) const {
    if (model == "uneven") return write_uneven_model(folder_.path());
    return model.starts_with("models/") ? golden().parent_path() / model : golden() / model / "init";
  }

 private:
  const testing::TemporaryDirectory folder_;
};

// How far a tensor's gradient is from another.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = static_cast<double>(a[i]) - b[i];
    squares += off * off;
  }
  return std::sqrt(squares);
}

// No further from the reference chip's, whose sums are of float64, than twice what one process is, and a
// rounding for each addition over the ranks and of each of the two results.
TEST_P(SpreadTrainingTest, GradientsAreAsExactAsOneProcesss) {
  const auto& [model, size, chip] = GetParam();
  const SpreadGradients one = gradients_of(init(model), 1, "cpu"),
                        spread = gradients_of(init(model), size, "cpu"),
                        exact = gradients_of(init(model), 1, "reference");
  const double roundings = (2 + std::ceil(std::log2(size))) * 0x1p-24;
  ASSERT_EQ(spread.whole.size(), exact.whole.size());
  for (const auto& [name, values] : exact.whole) {
    const double size_of_it = distance(values, std::vector<float>(values.size()));
    EXPECT_LE(distance(spread.whole.at(name), values),
              2 * distance(one.whole.at(name), values) + roundings * size_of_it)
        << name;
  }
}

// Of models as they begin, both are within the bound of single steps (step_test.cc) of the exact gradients,
// so within twice that of each other.
TEST_P(SpreadTrainingTest, LossesAndGradientsAreOneProcesss) {
  const auto& [model, size, chip] = GetParam();
  if (std::string_view(model).starts_with("models/")) return;  // trained: gradients of many sizes
  const SpreadGradients one = gradients_of(init(model), 1, chip),
                        spread = gradients_of(init(model), size, chip);
  EXPECT_LE(std::abs(spread.loss - one.loss), 2e-6 * std::abs(one.loss));
  EXPECT_LE(std::abs(spread.norm - one.norm), 2e-5 * one.norm);
  ASSERT_EQ(spread.whole.size(), one.whole.size());
  for (const auto& [name, expected] : one.whole) {
    const std::vector<float>& got = spread.whole.at(name);
    ASSERT_EQ(got.size(), expected.size()) << name;
    double largest = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
      ASSERT_LE(std::abs(static_cast<double>(got[i]) - expected[i]),
                2 * (1e-6 + 1e-4 * std::abs(static_cast<double>(expected[i]))))
          << name << " " << i << ": " << expected[i];
    }
    // Else the comparison would say nothing; but an expert may have had no token.
    const bool is_expert = name.find("experts") != std::string::npos;
    EXPECT_TRUE(is_expert || largest > 1e-5) << name;
  }
}

TEST_P(SpreadTrainingTest, WhatIsOnSeveralRanksIsTheSameBits) {
  const auto& [model, size, chip] = GetParam();
  const SpreadGradients spread = gradients_of(init(model), size, chip);
  EXPECT_GT(spread.parts[0].size(), 3u);
  for (size_t rank = 1; rank < spread.parts.size(); ++rank) {
    for (const auto& [name, values] : spread.parts[rank]) {
      const auto first = spread.parts[0].find(name);
      ASSERT_TRUE(first != spread.parts[0].end()) << name;
      EXPECT_EQ(std::memcmp(values.data(), first->second.data(), values.size() * sizeof(float)), 0)
          << name << " on rank " << rank;
    }
  }
}

TEST_P(SpreadTrainingTest, NoWayOfComputingChangesABit) {
  const auto& [model, size, chip] = GetParam();
  const SpreadGradients kept = gradients_of(init(model), size, chip);
  for (const SpreadPass& pass : {SpreadPass{}, {Recompute::kOn, true}, {Recompute::kOff, false}}) {
    const SpreadGradients other = gradients_of(init(model), size, chip, pass);
    EXPECT_EQ(other.logprob, kept.logprob);
    EXPECT_EQ(other.norm, kept.norm);
    for (const auto& [name, values] : kept.whole) EXPECT_EQ(other.whole.at(name), values) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Families, SpreadTrainingTest,
    ::testing::Values(SpreadTraining{"llama", 2, "cpu"}, SpreadTraining{"llama", 4, "cpu"},
                      SpreadTraining{"llama", 2, "reference"}, SpreadTraining{"qwen3", 2, "cpu"},
                      SpreadTraining{"qwen3", 4, "cpu"}, SpreadTraining{"gemma3", 2, "cpu"},
                      SpreadTraining{"gemma3", 4, "cpu"}, SpreadTraining{"qwen3-moe", 2, "cpu"},
                      SpreadTraining{"qwen3-moe", 4, "cpu"}, SpreadTraining{"qwen3-moe-balanced", 2, "cpu"},
                      SpreadTraining{"qwen3-moe-unnormalised", 2, "cpu"},
                      SpreadTraining{"hunyuan-moe", 2, "cpu"}, SpreadTraining{"hunyuan-moe", 4, "cpu"},
                      SpreadTraining{"models/phi3", 2, "cpu"}, SpreadTraining{"models/gemma2", 2, "cpu"},
                      SpreadTraining{"models/qwen2", 2, "cpu"}, SpreadTraining{"models/smollm3", 2, "cpu"},
                      SpreadTraining{"models/hunyuan-dense", 2, "cpu"},
                      SpreadTraining{"models/qwen3-moe-some-dense", 2, "cpu"},
                      SpreadTraining{"models/llama-biases", 2, "cpu"}, SpreadTraining{"uneven", 2, "cpu"},
                      SpreadTraining{"uneven", 3, "cpu"}, SpreadTraining{"uneven", 6, "cpu"}),
    [](const auto& param) {
      std::string name = fmt::format("{}_{}_of_{}", param.param.model, param.param.chip, param.param.size);
      for (char& c : name)
        if (c == '-' || c == '/') c = '_';
      return name;
    });

// An adapter's masks are those of the whole model, of which a rank has the part of its columns; of "uneven"
// the parts of down begin within a block of words. Within the bounds of LossesAndGradientsAreOneProcesss.
TEST(SpreadDropoutTest, MasksAreOneProcesss) {
  const testing::TemporaryDirectory folder;
  for (const bool is_uneven : {false, true}) {
    TrainOptions options = as_pytorch("");
    if (is_uneven) options.init = write_uneven_model(folder.path());
    options.lora.rank = 4;
    options.optimizer.learning_rate = 1e-2;
    options.virtual_ranks = 1, options.steps = 4;
    const auto losses = [&](double dropout, int size) {
      options.lora.dropout = dropout, options.tensor_parallel = size;
      options.out = folder.path() / fmt::format("{} {} {}", is_uneven, dropout, size);
      return run_in_threads(options, size).steps;
    };
    const std::vector<StepRecord> one = losses(0.4, 1), none = losses(0, 1);
    for (const int size : is_uneven ? std::vector{2, 3} : std::vector{2, 4}) {
      SCOPED_TRACE(fmt::format("{} {}", is_uneven ? "uneven" : "even", size));
      const std::vector<StepRecord> spread = losses(0.4, size);
      ASSERT_EQ(spread.size(), 4u);
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_LE(std::abs(spread[i].loss - one[i].loss), 2e-6 * one[i].loss) << i;
        EXPECT_LE(std::abs(spread[i].gradient_norm - one[i].gradient_norm), 2e-5 * one[i].gradient_norm) << i;
      }
    }
    EXPECT_GT(std::abs(none[3].loss - one[3].loss), 100 * 2e-6 * one[3].loss);  // else this would say nothing
  }
}

TEST(TensorPartTest, PartsAreTakenAndPutBack) {
  // Of two matrices of 4 x 3, rows 1 and 3 and the last two columns.
  const TensorPart part = {{{1, 1}, {3, 1}}, {1, 2}, 4, 3};
  EXPECT_EQ(part.count(), 4);
  EXPECT_FALSE(part.is_whole());
  std::vector<float> whole(24), own(8), back(24, -1);
  std::iota(whole.begin(), whole.end(), 0.0f);
  take_part(part, 2, sizeof(float), std::as_bytes(std::span(whole)), std::as_writable_bytes(std::span(own)));
  EXPECT_EQ(own, (std::vector<float>{4, 5, 10, 11, 16, 17, 22, 23}));
  put_part(part, 2, sizeof(float), std::as_bytes(std::span(own)), std::as_writable_bytes(std::span(back)));
  for (size_t i = 0; i < 24; ++i)
    EXPECT_EQ(back[i], std::ranges::find(own, whole[i]) != own.end() ? whole[i] : -1.0f) << i;
}

TEST(TensorPartTest, EveryNumberIsCountedOnce) {
  const auto rows = [](std::vector<Range> ranges) { return TensorPart{std::move(ranges), {0, 2}, 10, 2}; };
  const TensorPart first = rows({{0, 2}, {6, 1}}), second = rows({{2, 2}, {6, 1}}), third = rows({{0, 10}});
  const auto counted = [](std::vector<const TensorPart*> parts) {
    std::vector<std::pair<int64_t, int64_t>> found;
    for (const Range& range : counted_numbers(parts)) found.emplace_back(range.first, range.count);
    return found;
  };
  using Ranges = std::vector<std::pair<int64_t, int64_t>>;
  EXPECT_EQ(counted({&first}), (Ranges{{0, 4}, {4, 2}}));
  EXPECT_EQ(counted({&first, &second}), (Ranges{{0, 4}}));  // row 6 is the first's
  EXPECT_EQ(counted({&first, &second, &third}), (Ranges{{8, 4}, {14, 6}}));
  EXPECT_EQ(counted({&third, &first}), Ranges{});
  const TensorPart left = {{{0, 10}}, {0, 1}, 10, 2}, right = {{{0, 10}}, {1, 1}, 10, 2};
  EXPECT_EQ(counted({&left, &right}), (Ranges{{0, 10}}));
}

}  // namespace
}  // namespace qiao::train
