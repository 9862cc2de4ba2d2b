#include "infer/draft_pace.h"

#include <algorithm>

namespace qiao {
namespace {

constexpr double kTokenCost = 0.2;  // of one token more in a step of the target: about a fifth of a step
constexpr double kForget = 0.9;     // what one draft leaves of those before it
constexpr int64_t kRestTokens = 64;
constexpr int64_t kTrialTokens = 4;

}  // namespace

int64_t DraftPace::wish(int64_t tokens, int64_t most, double cost) {
  if (most <= 0 || tokens < paused_until_) return 0;
  if (trials_ > 0) return std::min(most, kTrialTokens);
  // k guesses, each right with chance p, make 1 + p + … + p^k tokens of a step that costs 1 + k (cost + c).
  const double chance = right_ / judged_;
  double made = 1.0, next = 1.0, best_rate = 1.0;
  int64_t best = 0;
  for (int64_t k = 1; k <= most; ++k) {
    made += next *= chance;
    const double rate = made / (1.0 + static_cast<double>(k) * (cost + kTokenCost));
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = k;
  }
  if (best == 0) {
    paused_until_ = tokens + kRestTokens;
    trials_ = 1;
  }
  return best;
}

void DraftPace::judge(int64_t drafted, int64_t accepted) {
  if (drafted == 0) return;
  trials_ = std::max(trials_ - 1, 0);
  right_ = kForget * right_ + static_cast<double>(accepted);
  judged_ = kForget * judged_ + static_cast<double>(accepted + (accepted < drafted ? 1 : 0));
}

}  // namespace qiao
