#include "text/added_tokens.h"

#include "base/error.h"
#include "text/unicode.h"

namespace qiao::tokenization {
namespace {

// The character that ends right before `at`.
char32_t character_before(std::string_view text, size_t at, size_t* length) {
  size_t begin = at - 1;
  while (begin > 0 && at - begin < 4 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return utf8_decode(text, begin, length);
}

}  // namespace

void AddedTokens::add(const AddedToken& token, std::string_view spelling, std::string_view where) {
  if (spelling.empty()) return;
  if (spelling.size() > kMaxBytes) {
    throw_error(ErrorKind::kInvalidInput, "{}: added token {} of {} bytes is over the limit of {}", where,
                token.id, spelling.size(), kMaxBytes);
  }
  trie_.insert(spelling, static_cast<TokenId>(tokens_.size()));
  starts_[static_cast<unsigned char>(spelling[0])] = true;
  tokens_.push_back(token);
}

void AddedTokens::split(std::string_view text, bool parse_special,
                        const std::function<void(std::string_view, const AddedToken*)>& piece) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    if (!starts_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    TokenId index = -1;
    const size_t length = trie_.longest_prefix(text.substr(at), &index);
    if (length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    size_t begin = at;
    size_t end = at + length;
    at = end;
    if (token.special && !parse_special) continue;
    size_t n;
    if (token.single_word && ((begin > 0 && is_word(character_before(text, begin, &n))) ||
                              (end < text.size() && is_word(utf8_decode(text, end, &n))))) {
      continue;
    }
    if (token.strip_left) {
      while (begin > done && is_space(character_before(text, begin, &n))) begin -= n;
    }
    if (token.strip_right) {
      while (end < text.size() && is_space(utf8_decode(text, end, &n))) end += n;
    }
    if (begin > done) piece(text.substr(done, begin - done), nullptr);
    piece(text.substr(begin, end - begin), &token);
    // The search goes on behind the token itself: one inside the space that this one took is found too, and
    // what follows that one is read again. So does the tokenizers library.
    done = end;
  }
  if (done < text.size()) piece(text.substr(done), nullptr);
}

}  // namespace qiao::tokenization
