#pragma once

#include <cstdint>

namespace qiao::cpu {

// One row of a piece of the vocabulary.
struct LogitGradients {
  float* logits;  // [count]: the capped products before, their gradients after
  int64_t count;
  int64_t label;  // in the piece, or outside [0, count)
  float temperature, soft_cap;
  float log_sum_exp;
  float gradient;  // of the log-probability, over the temperature
};

struct TokenLogprobKernels {
  void (*gradients)(const LogitGradients& row);
};
extern const TokenLogprobKernels kTokenLogprobGeneric, kTokenLogprobAvx2, kTokenLogprobAvx512;

}  // namespace qiao::cpu
