// The log-sum-exp of a row of logits, taken a piece of the vocabulary after the other: sample and
// token_logprob share this order, so that what sampling says of a token is what training says.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "backend/cpu/sample_kernels.h"

namespace qiao::cpu {

inline constexpr int64_t kVocabularyPiece = 4096;

class LogSumExp {
 public:
  // The next piece: kVocabularyPiece logits, or what is left of the row.
  void add(const SampleKernels& kernels, const float* logits, int64_t count) {
    constexpr float kLeast = -std::numeric_limits<float>::infinity();
    const float largest = kernels.largest(logits, count);
    // Where all are -infinity nothing is added, but a NaN shows.
    const double sum = kernels.exp_sum(logits, count, largest > kLeast ? largest : 0.0f);
    if (largest > largest_) {
      sum_ = sum_ * std::exp(static_cast<double>(largest_) - static_cast<double>(largest)) + sum;
      largest_ = largest;
    } else if (largest > kLeast) {
      sum_ += sum * std::exp(static_cast<double>(largest) - static_cast<double>(largest_));
    } else {
      sum_ += sum;
    }
  }
  double value() const { return static_cast<double>(largest_) + std::log(sum_); }

 private:
  float largest_ = -std::numeric_limits<float>::infinity();
  double sum_ = 0;  // of exp(logit - largest)
};

}  // namespace qiao::cpu
