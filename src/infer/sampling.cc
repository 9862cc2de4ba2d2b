#include "infer/sampling.h"

#include <cmath>
#include <random>

#include "base/error.h"

namespace qiao {
namespace {

void require(bool ok, std::string_view field, double value, std::string_view allowed) {
  if (!ok)
    throw_error(ErrorKind::kInvalidInput, "{}: {} is out of range; allowed: {}", field, value, allowed);
}

}  // namespace

void SamplingOptions::validate(int64_t vocabulary_size) const {
  require(temperature >= 0.0f && temperature <= 100.0f, "temperature", temperature, "0 to 100");
  require(top_k >= 0, "top_k", top_k, "0 (off) or more");
  require(top_p >= 0.0f && top_p <= 1.0f, "top_p", top_p, "0 to 1");
  require(min_p >= 0.0f && min_p <= 1.0f, "min_p", min_p, "0 to 1");
  require(repetition_penalty > 0.0f && repetition_penalty <= 100.0f, "repetition_penalty", repetition_penalty,
          "above 0, up to 100");
  require(std::abs(frequency_penalty) <= 100.0f, "frequency_penalty", frequency_penalty, "-100 to 100");
  require(std::abs(presence_penalty) <= 100.0f, "presence_penalty", presence_penalty, "-100 to 100");
  for (const auto& [id, bias] : logit_bias) {
    require(id >= 0 && id < vocabulary_size, "logit_bias", id,
            fmt::format("token ids below {}", vocabulary_size));
    require(bias < INFINITY, "logit_bias", bias, "finite numbers and -inf");
  }
}

SamplingOptions recommended_sampling(const Json& generation_config) {
  SamplingOptions options;
  if (!generation_config.is_object()) return options;
  // Recommendations are advice: a value of the wrong type or out of range is left out, never an error.
  const auto number = [&](const char* key, float& value, float low, float high) {
    const auto found = generation_config.find(key);
    if (found == generation_config.end() || !found->is_number()) return;
    const double wish = found->get<double>();
    if (wish >= low && wish <= high) value = static_cast<float>(wish);
  };
  number("temperature", options.temperature, 0.0f, 100.0f);
  number("top_p", options.top_p, 0.0f, 1.0f);
  number("min_p", options.min_p, 0.0f, 1.0f);
  number("repetition_penalty", options.repetition_penalty, 0.01f, 100.0f);
  float top_k = static_cast<float>(options.top_k);
  number("top_k", top_k, 0.0f, 1e6f);
  options.top_k = static_cast<int32_t>(top_k);
  if (const auto sample = generation_config.find("do_sample");
      sample != generation_config.end() && sample->is_boolean() && !sample->get<bool>()) {
    options.temperature = 0.0f;
  }
  return options;
}

uint64_t random_seed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

SampleRow sample_row(const SamplingOptions& options, int32_t choice, int64_t position) {
  constexpr float kColdest =
      1e-30f;  // logits divided by less overflow; they are as good as greedy long before
  SampleRow row;
  row.seed = options.seed;
  row.choice = choice;
  row.position = static_cast<int32_t>(position);
  row.temperature = options.temperature < kColdest ? 0.0f : options.temperature;
  row.top_k = options.top_k;
  row.top_p = options.top_p;
  row.min_p = options.min_p;
  row.repetition_penalty = options.repetition_penalty;
  row.frequency_penalty = options.frequency_penalty;
  row.presence_penalty = options.presence_penalty;
  return row;
}

}  // namespace qiao
