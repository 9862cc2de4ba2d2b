#include "train/policy_loss.h"

#include <algorithm>
#include <cmath>

namespace qiao::train {
namespace {

struct Surrogate {
  double value, slope;  // slope: by the logarithm of the ratio
  bool clipped;
};

Surrogate surrogate(double log_ratio, double advantage, const PolicyLoss& loss) {
  const double ratio = std::exp(log_ratio);
  const double clamped = std::clamp(ratio, 1 - loss.clip_low, 1 + loss.clip_high);
  if (clamped * advantage < ratio * advantage) return {-clamped * advantage, 0, true};
  return {-ratio * advantage, -ratio * advantage, false};
}

double k3(double logprob, double reference) {
  const double apart = reference - logprob;
  return std::expm1(apart) - apart;
}

}  // namespace

PolicyLoss::Result PolicyLoss::of(const Sequence& sequence, const Totals& totals,
                                  std::span<double> dlogprob) const {
  Result result;
  const size_t count = sequence.logprob.size();
  if (count == 0) return result;
  const auto own = static_cast<double>(count);
  const double weight = kind == PolicyLossKind::kDapo ? 1 / static_cast<double>(totals.tokens)
                                                      : 1 / (static_cast<double>(totals.sequences) * own);
  double mean_log_ratio = 0;
  for (size_t t = 0; t < count; ++t) mean_log_ratio += (sequence.logprob[t] - sequence.old[t]) / own;
  for (size_t t = 0; t < count; ++t) {
    // Of gspo each token has its o-th part of the sequence's own: the weight has the division already.
    const double log_ratio =
        kind == PolicyLossKind::kGspo ? mean_log_ratio : sequence.logprob[t] - sequence.old[t];
    const Surrogate token = surrogate(log_ratio, sequence.advantage, *this);
    result.loss += weight * token.value;
    result.clipped += token.clipped ? 1 : 0;
    dlogprob[t] = weight * token.slope;
    if (sequence.reference.empty()) continue;
    const double apart = k3(sequence.logprob[t], sequence.reference[t]);
    result.k3 += apart;
    result.loss += weight * beta * apart;
    dlogprob[t] -= weight * beta * std::expm1(sequence.reference[t] - sequence.logprob[t]);
  }
  return result;
}

std::vector<double> group_advantages(std::span<const double> rewards, bool divide_by_std) {
  std::vector<double> advantages(rewards.size(), 0.0);
  const auto [least, most] = std::minmax_element(rewards.begin(), rewards.end());
  if (least == rewards.end() || *least == *most) return advantages;
  const auto count = static_cast<double>(rewards.size());
  double mean = 0, squares = 0;
  for (const double reward : rewards) mean += reward / count;
  for (const double reward : rewards) squares += (reward - mean) * (reward - mean);
  const double divisor = divide_by_std ? std::sqrt(squares / (count - 1)) + 1e-6 : 1.0;
  for (size_t i = 0; i < rewards.size(); ++i) advantages[i] = (rewards[i] - mean) / divisor;
  return advantages;
}

double overlong_punishment(int64_t tokens, int64_t most, int64_t buffer) {
  const int64_t over = tokens - (most - buffer);
  if (buffer <= 0 || over <= 0) return 0;
  return std::max(-1.0, -static_cast<double>(over) / static_cast<double>(buffer));
}

double k3_sum(std::span<const double> logprob, std::span<const double> reference) {
  double sum = 0;
  for (size_t t = 0; t < logprob.size(); ++t) sum += k3(logprob[t], reference[t]);
  return sum;
}

}  // namespace qiao::train
