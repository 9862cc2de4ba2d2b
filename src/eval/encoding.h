// Texts as the token sequences that lm-evaluation-harness scores.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/language_model.h"

namespace qiao::eval {

// Tokens of which those from `first` on are scored, each given all before it. 1 <= first < tokens.size().
struct ScoredTokens {
  std::vector<TokenId> tokens;
  int64_t first = 1;
};

class TextEncoder {
 public:
  // `add_bos`: whether texts begin with the BOS token; empty: as the tokenizer says. Throws
  // Error(kInvalidInput) where it is wanted and the tokenizer has none.
  TextEncoder(const LanguageModel& model, std::optional<bool> add_bos);

  // Control tokens in the text are parsed. No second BOS where the text begins with one.
  std::vector<TokenId> encode(std::string_view text) const;
  std::vector<TokenId> encode_without_bos(std::string_view text) const;
  // What an empty context is: BOS, or EOS where there is none. Throws Error(kUnsupported) without either.
  TokenId prefix() const;

  // `continuation` behind `context`, whose trailing white space goes over to it; the tokens of both together
  // are cut where those of the context alone end. Throws Error(kInvalidInput) where nothing is left to score.
  ScoredTokens encode_pair(std::string_view context, std::string_view continuation) const;

 private:
  const LanguageModel& model_;
  bool add_bos_;
};

// Every token of a text once, in windows of `window` input tokens that each score at most `stride` more; the
// first begins with `prefix` and scores all it has. Required: 1 <= stride <= window.
std::vector<ScoredTokens> rolling_windows(std::span<const TokenId> text, TokenId prefix, int64_t window,
                                          int64_t stride);

// Drops tokens at the left so that at most `context` are inputs (the last one is none); whether it did.
// Throws Error(kInvalidInput) where scored ones would have to go.
bool truncate_left(ScoredTokens& scored, int64_t context);

}  // namespace qiao::eval
