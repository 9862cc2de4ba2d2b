#include "models/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace qiao {
namespace {

using Kind = RopeScaling::Kind;

// base ** (2i / R), the power and its exponent rounded to F32 as torch does.
float power(double base, int64_t i, int64_t rotated) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotated);
  return static_cast<float>(std::pow(base, static_cast<double>(exponent)));
}

double yarn_mscale(double scale, double mscale) {
  return scale <= 1.0 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

float yarn_attention_factor(const RopeScaling& s) {
  if (s.attention_factor) return static_cast<float>(*s.attention_factor);
  if (s.mscale != 0.0 && s.mscale_all_dim != 0.0)
    return static_cast<float>(yarn_mscale(s.factor, s.mscale) / yarn_mscale(s.factor, s.mscale_all_dim));
  return static_cast<float>(yarn_mscale(s.factor, 1.0));
}

// The share of dimension i that extrapolates (keeps its frequency): 1 below `low`, 0 above `high`.
class YarnRamp {
 public:
  YarnRamp(const RopeScaling& s, int64_t rotated) {
    const auto dimension = [&](double rotations) {
      const double r = static_cast<double>(rotated);
      return r * std::log(s.original_context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(s.theta));
    };
    low_ = dimension(s.beta_fast);
    high_ = dimension(s.beta_slow);
    if (s.truncate) {
      low_ = std::floor(low_);
      high_ = std::ceil(high_);
    }
    low_ = std::max(low_, 0.0);
    high_ = std::min(high_, static_cast<double>(rotated - 1));
    if (low_ == high_) high_ += 0.001;
  }
  float operator()(int64_t i) const {
    const auto ramp = (static_cast<float>(i) - static_cast<float>(low_)) / static_cast<float>(high_ - low_);
    return 1.0f - std::clamp(ramp, 0.0f, 1.0f);
  }

 private:
  double low_, high_;
};

float llama3_frequency(const RopeScaling& s, float frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < s.original_context / s.high_freq_factor) return frequency;
  if (wavelength > s.original_context / s.low_freq_factor) return frequency / static_cast<float>(s.factor);
  const double smooth =
      (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return static_cast<float>((1 - smooth) * frequency / s.factor + smooth * frequency);
}

double scaled_base(const RopeScaling& s, int64_t rotated, int64_t context, int64_t max_positions) {
  const double exponent = static_cast<double>(rotated) / static_cast<double>(rotated - 2);
  if (s.kind == Kind::kNtkAlpha) return s.theta * std::pow(s.alpha, exponent);
  if (s.kind != Kind::kDynamic) return s.theta;
  const double stretch =
      static_cast<double>(std::max(context, max_positions)) / static_cast<double>(max_positions);
  return s.theta * std::pow(s.factor * stretch - (s.factor - 1), exponent);
}

}  // namespace

RopeTable make_rope_table(const RopeScaling& s, int64_t rotated, int64_t context, int64_t max_positions) {
  QIAO_ASSERT(rotated >= 2 && rotated % 2 == 0 && max_positions >= 1);
  // A base of two dimensions has no exponent to stretch.
  QIAO_ASSERT(rotated > 2 || (s.kind != Kind::kNtkAlpha && s.kind != Kind::kDynamic));
  const int64_t count = rotated / 2;
  const bool is_long = s.kind == Kind::kLongRope && static_cast<double>(context) > s.original_context;
  const std::vector<float>& factors = is_long ? s.long_factors : s.short_factors;
  QIAO_ASSERT(s.kind != Kind::kLongRope || static_cast<int64_t>(factors.size()) == count);
  QIAO_ASSERT(s.kind != Kind::kDivisors || static_cast<int64_t>(s.divisors.size()) == count);

  RopeTable table;
  const double base = scaled_base(s, rotated, context, max_positions);
  std::optional<YarnRamp> ramp;
  if (s.kind == Kind::kYarn) {
    ramp.emplace(s, rotated);
    table.scale = yarn_attention_factor(s);
  }
  if (s.kind == Kind::kLongRope) {
    const double stretched =
        s.factor <= 1.0 ? 1.0 : std::sqrt(1 + std::log(s.factor) / std::log(s.original_context));
    table.scale = static_cast<float>(s.attention_factor.value_or(stretched));
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto index = static_cast<size_t>(i);
    const float raised = power(base, i, rotated);
    float frequency = 1.0f / raised;
    switch (s.kind) {
      case Kind::kDefault:
      case Kind::kDynamic:
      case Kind::kNtkAlpha:
        break;
      case Kind::kLinear:
        frequency /= static_cast<float>(s.factor);
        break;
      case Kind::kYarn: {
        const float kept = (*ramp)(i);
        frequency = 1.0f / (static_cast<float>(s.factor) * raised) * (1.0f - kept) + frequency * kept;
        break;
      }
      case Kind::kLongRope:
        frequency = 1.0f / (factors[index] * raised);
        break;
      case Kind::kLlama3:
        frequency = llama3_frequency(s, frequency);
        break;
      case Kind::kDivisors:
        frequency /= s.divisors[index];
        break;
    }
    table.inverse_frequencies.push_back(frequency);
  }
  return table;
}

}  // namespace qiao
