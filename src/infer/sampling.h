// How a request's tokens are drawn.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/ops/sample.h"
#include "base/json.h"
#include "text/tokenizer.h"

namespace qiao {

// Meanings and order of application: backend/ops/sample.h. Defaults are llama.cpp's, since the flags carry
// its names.
struct SamplingOptions {
  float temperature = 0.8f;  // 0: greedy
  int32_t top_k = 40;        // 0: off
  float top_p = 0.95f;
  float min_p = 0.05f;
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  std::vector<std::pair<TokenId, float>> logit_bias;  // ids distinct, in [0, V)
  uint64_t seed = 0;                                  // callers without a wish draw one: random_seed()

  // Throws Error(kInvalidInput) naming the field, its value and what is allowed.
  void validate(int64_t vocabulary_size) const;
};

// The options with what a model's generation_config.json recommends in place of the defaults (absent keys
// stay).
SamplingOptions recommended_sampling(const Json& generation_config);

// From the system's entropy.
uint64_t random_seed();

// Its log-probabilities are those at temperature 1.
SampleRow sample_row(const SamplingOptions& options, int32_t choice, int64_t position);

}  // namespace qiao
