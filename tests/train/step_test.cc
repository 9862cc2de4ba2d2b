// Single steps from states of PyTorch (tests/golden/make_training_steps.py): loss, every gradient, and what
// AdamW makes of them, each within its own bound of float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/file.h"
#include "base/json.h"
#include "models/decoder_training.h"
#include "train/golden_run.h"
#include "train/optimizer.h"

namespace qiao::train {
namespace {

constexpr double kUnit = 0x1p-24;
double gamma(double m) { return m * kUnit / (1 - m * kUnit); }

// make_training_steps.py's.
const OptimizerSettings kAdamW;
constexpr double kClip = 1.0;

using Kind = Parameters::Kind;
constexpr const char* kKinds[] = {"parameter", "first_moment", "second_moment"};

// StepRows one behind the other, each a document.
struct StepRows {
  std::vector<int32_t> tokens, positions, labels, starts = {0};
  int64_t labelled = 0;
  explicit StepRows(const Json& rows) {
    for (const Json& row : rows) {
      const auto ids = row.get<std::vector<int32_t>>();
      for (size_t i = 0; i < ids.size(); ++i) {
        tokens.push_back(ids[i]);
        positions.push_back(static_cast<int32_t>(i));
        labels.push_back(i + 1 < ids.size() ? ids[i + 1] : -1);
        labelled += i + 1 < ids.size() ? 1 : 0;
      }
      starts.push_back(static_cast<int32_t>(tokens.size()));
    }
  }
};

class StepTest : public ::testing::TestWithParam<const char*> {
 protected:
  const std::filesystem::path folder_ = golden() / "steps" / GetParam();
  const Json steps_ = parse_json(read_file(folder_ / "expected.json"), "expected.json");
  const std::shared_ptr<ModelFiles> files_ = ModelFiles::open(folder_ / "init");
  const std::unique_ptr<Backend> backend_ = make_backend("auto", {.threads = 2});
  Parameters parameters_{*backend_};
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<DecoderTraining> passes_;
  std::map<std::string, std::vector<float>> stored_;

  StepTest() {
    DecoderOptions options;
    options.float_weights = DType::kF32;
    options.laid_out = [&](const LaidOutTensor& tensor) { parameters_.add(tensor); };
    decoder_ = Decoder::load(*files_, *backend_, options);
    parameters_.prepare(*files_);
    optimizer_ =
        std::make_unique<Optimizer>(*backend_, parameters_, kAdamW, std::span<const Weight* const>());
    optimizer_->prepare();
    passes_ = std::make_unique<DecoderTraining>(*decoder_, 64, 4);
    for (NamedValues& tensor : read_tensors(folder_ / "states.safetensors"))
      stored_[tensor.name] = std::move(tensor.values);
  }

  const std::vector<float>& stored(int64_t step, const char* kind, const Parameters::Named& tensor) const {
    return stored_.at(fmt::format("{}.{}.{}", step, kind, tensor.name));
  }

  const Optimizer::State& state_of(const char* kind, const Parameters::Named& tensor) const {
    return *std::ranges::find(optimizer_->states(), fmt::format("{}.{}", kind, tensor.name),
                              &Optimizer::State::name);
  }
  std::vector<float> read(const char* kind, const Parameters::Named& tensor) const {
    std::vector<float> values(static_cast<size_t>(tensor.count));
    if (std::string_view(kind) == "parameter") {
      parameters_.read(Kind::kMaster, tensor, values);
    } else if (std::string_view(kind) == "gradient") {
      parameters_.read(Kind::kGradient, tensor, values);
    } else {
      optimizer_->read(state_of(kind, tensor), std::as_writable_bytes(std::span(values)));
    }
    return values;
  }

  // 0: the model of `init`, no moments.
  void begin_from(int64_t state) {
    for (const Parameters::Named& tensor : parameters_.tensors()) {
      if (state == 0) break;
      parameters_.write_master(tensor, stored(state, kKinds[0], tensor));
      for (const char* moment : {kKinds[1], kKinds[2]})
        optimizer_->write(state_of(moment, tensor), std::as_bytes(std::span(stored(state, moment, tensor))));
    }
    parameters_.rewrite();
  }

  double forward_and_back(const StepRows& rows) {
    parameters_.begin_gradient(0);
    double sum = 0;
    for (const float value : passes_->forward({rows.tokens, rows.positions, rows.labels, rows.starts}))
      sum -= static_cast<double>(value);
    std::vector<float> slopes(rows.tokens.size());
    for (size_t i = 0; i < slopes.size(); ++i)
      slopes[i] = rows.labels[i] < 0 ? 0.0f : static_cast<float>(-1.0 / static_cast<double>(rows.labelled));
    passes_->backward(slopes, parameters_);
    parameters_.end_gradient(0);
    return sum / static_cast<double>(rows.labelled);
  }
};

double clip_scale(double norm) { return std::min(1.0, kClip / (norm + 1e-6)); }

// What AdamW may be off by (ops/optimizer.h), from gradients that are `off` from the exact ones: the
// contract's bounds around what the op was given, how far that moves the exact results, and the results'
// storage in F32.
struct UpdateBound {
  double parameter, first, second;
  UpdateBound(double p, double m, double v, double g, double off, int64_t step) {
    const double b1 = kAdamW.beta1, b2 = kAdamW.beta2, t = static_cast<double>(step);
    const double rate = kAdamW.learning_rate / (1 - std::pow(b1, t)), root = std::sqrt(1 - std::pow(b2, t));
    const double m_after = b1 * m + (1 - b1) * g, v_after = b2 * v + (1 - b2) * g * g;
    const double moved_m = (1 - b1) * off, moved_v = (1 - b2) * (2 * std::abs(g) * off + off * off);
    const auto divisor = [&](double value) {
      return std::sqrt(std::max(value, 0.0)) / root + kAdamW.epsilon;
    };
    const double d = divisor(v_after), d_low = divisor(v_after - moved_v),
                 d_high = divisor(v_after + moved_v);
    const double moved_d = std::max(d - d_low, d_high - d);
    const double moved_p = rate * (moved_m / d_low + std::abs(m_after) * moved_d / (d * d_low));
    const double size = std::abs(b1 * m) + (1 - b1) * (std::abs(g) + off);  // M
    const double r = 0x1p-62 / (root * d_low), decayed = (1 - kAdamW.learning_rate * kAdamW.weight_decay) * p;
    const double update = rate * m_after / d;
    first = moved_m + gamma(5) * size + kUnit * std::abs(m_after) + 0x1p-124;
    second = moved_v + gamma(8) * (v_after + moved_v) + kUnit * v_after + 0x1p-124;
    parameter = moved_p + gamma(3) * std::abs(decayed) +
                rate * size / d_low * ((1 + gamma(9)) / (1 - gamma(9) - r) - 1) +
                kUnit * std::abs(decayed - update) + 0x1p-124 * (1 + rate / d_low);
  }
};

TEST_P(StepTest, IsPyTorchsFromItsState) {
  ASSERT_FALSE(steps_.empty());
  for (const Json& expected : steps_) {
    const int64_t step = expected["step"], state = expected["begins_from"];
    SCOPED_TRACE(fmt::format("step {}", step));
    begin_from(state);
    const double loss = forward_and_back(StepRows(expected["rows"])), exact_loss = expected["loss"];
    EXPECT_LE(std::abs(loss - exact_loss), 1e-6 * exact_loss);
    const double norm = norm_of(parameters_.gradient_squares()), exact_norm = expected["grad_norm"];
    EXPECT_LE(std::abs(norm - exact_norm), 1e-5 * exact_norm);

    const double scale = clip_scale(norm), exact_scale = clip_scale(exact_norm);
    std::map<std::string, std::vector<std::vector<float>>> before;  // by tensor: kinds, then the gradient
    for (const Parameters::Named& tensor : parameters_.tensors()) {
      auto& lists = before[tensor.name];
      for (const char* kind : kKinds) lists.push_back(read(kind, tensor));
      lists.push_back(read("gradient", tensor));
      const std::vector<float>& exact = stored(step, "gradient", tensor);
      ASSERT_EQ(exact.size(), lists.back().size()) << tensor.name;
      for (size_t i = 0; i < exact.size(); ++i) {
        const double g = exact[i];
        ASSERT_LE(std::abs(static_cast<double>(lists.back()[i]) - g), 1e-6 + 1e-4 * std::abs(g))
            << tensor.name << " " << i;
      }
    }

    optimizer_->update(kAdamW.learning_rate, kAdamW.learning_rate, scale, step);
    parameters_.rewrite();
    for (const Parameters::Named& tensor : parameters_.tensors()) {
      const auto& was = before[tensor.name];
      const std::vector<float>& gradient = stored(step, "gradient", tensor);
      std::vector<std::vector<float>> after;
      for (const char* kind : kKinds) after.push_back(read(kind, tensor));
      for (size_t i = 0; i < gradient.size(); ++i) {
        const double g = exact_scale * gradient[i];
        const double off = std::abs(scale * was[3][i] - g) + kUnit * std::abs(g);
        const UpdateBound bound(was[0][i], was[1][i], was[2][i], g, off, step);
        const double bounds[] = {bound.parameter, bound.first, bound.second};
        for (size_t kind = 0; kind < 3; ++kind) {
          const double exact = stored(step, kKinds[kind], tensor)[i];
          ASSERT_LE(std::abs(static_cast<double>(after[kind][i]) - exact), bounds[kind])
              << tensor.name << " " << kKinds[kind] << " " << i << ": " << exact;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, StepTest, ::testing::Values("llama", "qwen3", "qwen3-moe", "gemma3"));

}  // namespace
}  // namespace qiao::train
