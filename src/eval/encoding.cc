#include "eval/encoding.h"

#include <algorithm>

#include "base/error.h"
#include "eval/python_text.h"

namespace qiao::eval {

TextEncoder::TextEncoder(const LanguageModel& model, std::optional<bool> add_bos)
    : model_(model), add_bos_(add_bos.value_or(model.tokenizer().adds_bos())) {
  if (add_bos_ && !model.tokenizer().bos()) {
    throw_error(ErrorKind::kInvalidInput, "--add-bos on: the tokenizer of {} has no BOS token",
                model.path().string());
  }
}

std::vector<TokenId> TextEncoder::encode_without_bos(std::string_view text) const {
  return model_.tokenizer().encode(text, {.parse_special = true});
}

std::vector<TokenId> TextEncoder::encode(std::string_view text) const {
  std::vector<TokenId> ids = encode_without_bos(text);
  if (!add_bos_) return ids;
  const TokenId bos = *model_.tokenizer().bos();
  if (ids.empty() || ids.front() != bos) ids.insert(ids.begin(), bos);
  return ids;
}

TokenId TextEncoder::prefix() const {
  const Tokenizer& tokenizer = model_.tokenizer();
  if (tokenizer.bos()) return *tokenizer.bos();
  if (tokenizer.eos()) return *tokenizer.eos();
  throw_error(ErrorKind::kUnsupported,
              "{}: the tokenizer has neither BOS nor EOS, with which a text would have to begin",
              model_.path().string());
}

ScoredTokens TextEncoder::encode_pair(std::string_view context, std::string_view continuation) const {
  const size_t kept = length_without_trailing_space(context);
  const std::string whole = std::string(context) + std::string(continuation);
  ScoredTokens pair;
  if (!context.empty()) {
    pair.tokens = encode(whole);
    pair.first = std::ssize(encode(context.substr(0, kept)));
  }
  if (pair.first == 0 || context.empty()) {
    pair.tokens = encode_without_bos(whole);
    if (pair.tokens.empty() || pair.tokens.front() != prefix())
      pair.tokens.insert(pair.tokens.begin(), prefix());
    pair.first = 1;
  }
  if (pair.first >= std::ssize(pair.tokens)) {
    throw_error(ErrorKind::kInvalidInput, "{:?} adds no token to what precedes it", continuation);
  }
  return pair;
}

std::vector<ScoredTokens> rolling_windows(std::span<const TokenId> text, TokenId prefix, int64_t window,
                                          int64_t stride) {
  QIAO_ASSERT(1 <= stride && stride <= window);
  std::vector<ScoredTokens> windows;
  const int64_t total = std::ssize(text);
  for (int64_t done = 0; done < total;) {
    const int64_t scored = std::min(total - done, done == 0 ? window : stride);
    const int64_t end = done + scored;
    const int64_t begin = std::max<int64_t>(0, end - window - 1);
    ScoredTokens next;
    if (done == 0) next.tokens.push_back(prefix);
    next.tokens.insert(next.tokens.end(), text.begin() + begin, text.begin() + end);
    next.first = std::ssize(next.tokens) - scored;
    windows.push_back(std::move(next));
    done = end;
  }
  return windows;
}

bool truncate_left(ScoredTokens& scored, int64_t context) {
  const int64_t excess = std::ssize(scored.tokens) - (context + 1);
  if (excess <= 0) return false;
  if (excess >= scored.first) {
    throw_error(ErrorKind::kInvalidInput, "{} tokens are to be scored; a context of {} (-c) holds fewer",
                std::ssize(scored.tokens) - scored.first, context);
  }
  scored.tokens.erase(scored.tokens.begin(), scored.tokens.begin() + excess);
  scored.first -= excess;
  return true;
}

}  // namespace qiao::eval
