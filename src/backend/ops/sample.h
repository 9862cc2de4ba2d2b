#pragma once

#include "backend/ops/common.h"

namespace qiao {

// How one row is sampled. Defaults: greedy.
struct SampleRow {
  uint64_t seed = 0;
  int32_t choice = 0;        // index among a request's n choices
  int32_t position = 0;      // of the token being drawn, in its sequence
  float temperature = 0.0f;  // <= 0: argmax
  int32_t top_k = 0;         // <= 0: off
  float top_p = 1.0f;        // >= 1: off
  float min_p = 0.0f;        // <= 0: off
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  float logprob_temperature = 1.0f;  // > 0: the log-probabilities are of logits over it
};

// One token a row, by these steps in F32, each operation of steps 1 and 2 and the division of 3 rounded:
//   1. l = logits; for each listed history id: l > 0 ? l / repetition : l * repetition;
//      l -= frequency * count + (count > 0 ? presence : 0), where count is the times it was generated (0:
//      prompt only)
//   2. l += bias; where the mask's bit is 0: l = -infinity. A row with nothing left gives id -1
//   3. greedy: the largest l, the smallest id of equals. Else z = l / temperature, and what is kept is cut in
//   turn by
//      top-k (largest z, smaller id of equals), top-p (the shortest run of the largest whose softmax over
//      what top-k kept reaches p; at least one) and min-p (softmax >= min_p * the largest's)
//   4. the kept token with the largest z + g (Gumbel-max; Maddison et al. 2014): g = -log(-log(v)),
//      v = (word + 0.5) * 2^-32, word = Philox4x32-10 (Salmon et al. 2011) with key = seed, counter =
//      (id / 4, position, choice, 0), word id mod 4. No order of summation decides, so batch mates never
//      matter.
// g errs by at most 2^-20 * (1 + |g|) (so near v = 1 the logarithm is taken of the complement, or in F64) and
// z + g rounds; a sum of probabilities errs by at most kSampleSlack, min_p's product by that part of itself.
// The token may differ from the reference's only where such errors decide. Log-probabilities are those of
// log_softmax(logits / logprob_temperature), the division rounded, of the logits as given, before every step
// above: the bits that TokenLogprob gives at that temperature. Bound 2^-20 + 2^-22 * |value|; -infinity for a
// logit of -infinity and for the id -1.
inline constexpr double kSampleSlack = 0x1p-18;

struct Sample {
  Tensor logits;  // F32 [S, V], rows contiguous
  Tensor rows;    // U8 [S, sizeof(SampleRow)]: SampleRow each
  Tensor mask;    // I32 [S, ceil(V / 32)]: bit id % 32 of word id / 32 set = allowed; or absent
  // Sparse lists, all absent or all present; row s owns entries [offsets[s], offsets[s+1]); ids of a row
  // distinct.
  Tensor history_ids, history_counts, history_offsets;  // I32 [n], I32 [n], I32 [S + 1]
  Tensor bias_ids, bias_values, bias_offsets;           // I32 [n], F32 [n], I32 [S + 1]
  Tensor ids;                                           // I32 [S]
  Tensor log_probabilities;                             // F32 [S] or absent
  Tensor top_ids,
      top_log_probabilities;  // I32, F32 [S, n], by descending logit, smaller id of equals first; or absent
  Tensor workspace;

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
