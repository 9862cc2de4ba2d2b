// The losses of reinforcement learning by groups of samples, and their derivatives by the log-probabilities.
// For sequence i of a group of G completions of one prompt, with reward r_i and o_i drawn tokens:
//   A_i = (r_i - mean r) / (std r + 1e-6), std with G - 1 (as torch.std), or A_i = r_i - mean r
//   ratio_t = exp(logp_t - old_t);  k3_t = exp(ref_t - logp_t) - (ref_t - logp_t) - 1  (Schulman 2020)
//   surrogate(ratio, A) = -min(ratio A, clamp(ratio, 1 - clip_low, 1 + clip_high) A)
// and over the N sequences of an update:
//   grpo (DeepSeekMath, Shao et al. 2024):  1/N sum_i 1/o_i sum_t (surrogate(ratio_t, A_i) + beta k3_t)
//   dapo (Yu et al. 2025):                  1/(sum_i o_i) sum_i sum_t (surrogate(ratio_t, A_i) + beta k3_t)
//   gspo (Zheng et al. 2025):               1/N sum_i (surrogate(ratio_i, A_i) + beta/o_i sum_t k3_t)
//       with ratio_i = exp(1/o_i sum_t (logp_t - old_t))
// A_i without the division is Dr. GRPO's (Liu et al. 2025).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace qiao::train {

enum class PolicyLossKind { kGrpo, kDapo, kGspo };

struct PolicyLoss {
  PolicyLossKind kind = PolicyLossKind::kGrpo;
  double clip_low = 0.2, clip_high = 0.2;
  double beta = 0;  // of k3; 0: no reference is asked for

  // Of all sequences of the update together.
  struct Totals {
    int64_t sequences = 0, tokens = 0;
  };
  // A sequence's drawn tokens, in float64.
  struct Sequence {
    std::span<const double> logprob, old;  // [o]
    std::span<const double> reference;     // [o]; empty where beta is 0
    double advantage = 0;
  };
  struct Result {
    double loss = 0;      // the sequence's share
    int64_t clipped = 0;  // tokens whose surrogate is the clamped one
    double k3 = 0;        // sum over the tokens, to the reference
  };
  // In dlogprob [o] the derivative of the share by each log-probability.
  Result of(const Sequence& sequence, const Totals& totals, std::span<double> dlogprob) const;
};

// A_i of one group; all 0 where the rewards are equal. Two or more rewards.
std::vector<double> group_advantages(std::span<const double> rewards, bool divide_by_std);

// DAPO's soft punishment of what is too long: 0 up to most - buffer tokens, falling to -1 at `most`; 0 where
// buffer is 0.
double overlong_punishment(int64_t tokens, int64_t most, int64_t buffer);

// sum over t of k3 with `logprob` in place of the reference: how far a pass is from another.
double k3_sum(std::span<const double> logprob, std::span<const double> reference);

}  // namespace qiao::train
