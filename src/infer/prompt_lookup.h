// Drafts a sequence's next tokens by looking its last ones up in what precedes them: answers that quote or
// rewrite their prompt repeat it (Saxena 2023, "Prompt Lookup Decoding"). A draft costs compute and never
// decides: see StepRunner. Pauses where its drafts are not taken.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "text/tokenizer.h"

namespace qiao {

class PromptLookup {
 public:
  // Replaces `draft` by at most `most` guesses of what follows `tokens`; none where nothing like it precedes.
  // `tokens` are those of the last call with more behind them.
  void propose(std::span<const TokenId> tokens, int64_t most, std::vector<TokenId>& draft);

  // How many of the last draft's tokens were right.
  void judge(int64_t drafted, int64_t accepted);

 private:
  static constexpr size_t kNgram = 3;
  static uint64_t key_of(std::span<const TokenId> tokens, size_t end);

  std::unordered_map<uint64_t, size_t>
      after_;                // hash of kNgram tokens: where what followed them begins, last time
  size_t indexed_ = kNgram;  // ends of n-grams below this are in after_
  double share_ = 0.5;       // of drafted tokens that were right, lately
  size_t proposed_at_ = 0, paused_until_ = 0;  // numbers of tokens
};

}  // namespace qiao
