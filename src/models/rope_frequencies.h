// Rotary frequencies with every scaling applied: what Transformers' modeling_rope_utils.py computes, rounded
// to F32 in the same places.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "models/config.h"

namespace qiao {

struct RopeScaling {
  enum class Kind : uint8_t {
    kDefault,
    kLinear,    // frequencies / factor
    kDynamic,   // NTK: the base grows with the context over max_position_embeddings
    kNtkAlpha,  // NTK with a fixed alpha (Hunyuan)
    kYarn,      // Peng et al. 2023
    kLongRope,  // Ding et al. 2024: divisors for short or long contexts
    kLlama3,    // low frequencies / factor, high ones kept, smooth between
    kDivisors,  // GGUF's rope_freqs.weight
  };
  Kind kind = Kind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double alpha = 1.0;
  double original_context = 0.0;  // max_position_embeddings before scaling
  double low_freq_factor = 1.0, high_freq_factor = 4.0;
  double beta_fast = 32.0, beta_slow = 1.0;
  bool truncate = true;                    // round YaRN's correction range outwards
  std::optional<double> attention_factor;  // of YaRN and LongRoPE; absent: by their formula
  double mscale = 0.0, mscale_all_dim = 0.0;
  std::vector<float> divisors;                     // R / 2, kDivisors
  std::vector<float> short_factors, long_factors;  // R / 2 each, kLongRope
};

// `rotated`: R, even. `context`: the length that will be used; LongRoPE picks its divisors by it, dynamic NTK
// its base.
RopeTable make_rope_table(const RopeScaling& scaling, int64_t rotated, int64_t context,
                          int64_t max_position_embeddings);

}  // namespace qiao
