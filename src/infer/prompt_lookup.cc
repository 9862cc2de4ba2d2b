#include "infer/prompt_lookup.h"

#include <algorithm>
#include <cmath>

namespace qiao {
namespace {

// A drafted token that is wrong costs about a fifth of a step or more; below this share it does not pay.
constexpr double kLeastShare = 0.25;
constexpr size_t kPauseTokens = 64;

}  // namespace

uint64_t PromptLookup::key_of(std::span<const TokenId> tokens, size_t end) {
  uint64_t key = 0;
  for (size_t i = end - kNgram; i < end; ++i) {
    key = (key ^ static_cast<uint32_t>(tokens[i])) * 0x9e3779b97f4a7c15u;
    key ^= key >> 32;
  }
  return key;
}

void PromptLookup::propose(std::span<const TokenId> tokens, int64_t most, std::vector<TokenId>& draft) {
  draft.clear();
  if (tokens.size() <= kNgram) return;
  for (; indexed_ < tokens.size(); ++indexed_)
    after_[key_of(tokens, indexed_)] = indexed_;  // the last one follows nothing
  if (most <= 0 || tokens.size() < paused_until_) return;
  const auto found = after_.find(key_of(tokens, tokens.size()));
  if (found == after_.end()) return;
  // Two n-grams may share a key: only a true repetition is worth a draft.
  if (!std::equal(tokens.end() - kNgram, tokens.end(),
                  tokens.begin() + static_cast<std::ptrdiff_t>(found->second - kNgram)))
    return;
  const auto wish = static_cast<size_t>(std::ceil(static_cast<double>(most) * std::min(1.0, share_ + 0.25)));
  for (size_t i = 0; i < wish; ++i) {
    const size_t at = found->second + i;  // what repeats with a short period goes on in the draft itself
    draft.push_back(at < tokens.size() ? tokens[at] : draft[at - tokens.size()]);
  }
  proposed_at_ = tokens.size();
}

void PromptLookup::judge(int64_t drafted, int64_t accepted) {
  if (drafted == 0) return;
  share_ += 0.25 * (static_cast<double>(accepted) / static_cast<double>(drafted) - share_);
  if (share_ >= kLeastShare) return;
  paused_until_ = proposed_at_ + kPauseTokens;
  share_ = kLeastShare;  // one draft in vain more, and it pauses again
}

}  // namespace qiao
