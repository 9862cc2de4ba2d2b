// Tokens that are found in the text itself, before the model sees it: control tokens and user-defined ones.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "text/trie.h"

namespace qiao::tokenization {

struct AddedToken {
  TokenId id = -1;
  std::string content;
  bool special = false;      // not looked for where EncodeOptions.parse_special is off
  bool normalized = false;   // looked for after normalization, in the normalized spelling
  bool single_word = false;  // only where no word character touches it
  bool strip_left = false;   // takes the white space before it
  bool strip_right = false;  // and after it
};

// One set of added tokens, by leftmost-longest match. Built by add(), then read-only.
class AddedTokens {
 public:
  static constexpr size_t kMaxBytes = 1024;  // of one added token: bounds the cost of a failed search

  // `spelling` is what to look for. Throws Error(kInvalidInput) naming `where` over kMaxBytes; an empty one
  // is ignored.
  void add(const AddedToken& token, std::string_view spelling, std::string_view where);
  bool empty() const { return tokens_.empty(); }

  // Calls piece(text, nullptr) and piece(text, token) for the parts of `text`, in order.
  void split(std::string_view text, bool parse_special,
             const std::function<void(std::string_view, const AddedToken*)>& piece) const;

 private:
  std::vector<AddedToken> tokens_;
  Trie trie_;  // values are indices into tokens_
  bool starts_[256] = {};
};

}  // namespace qiao::tokenization
