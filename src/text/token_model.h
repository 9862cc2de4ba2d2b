// The heart of a tokenizer: one pre-token (a normalized word, or a whole text) to ids.
#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"
#include "text/utf8.h"
#include "text/vocabulary.h"

namespace qiao::tokenization {

// Immutable after construction; encode is safe from any thread and close to linear in word.size().
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of `word` (well-formed UTF-8; `invalid` says which characters stand for broken bytes).
  virtual void encode(std::string_view word, const InvalidBytes& invalid,
                      std::vector<TokenId>& out) const = 0;
  // Whether broken bytes keep their value (all 256 byte tokens are there).
  virtual bool keeps_bytes() const = 0;
};

// The ids of "<0x00>" … "<0xFF>"; -1 where missing.
class ByteTokens {
 public:
  ByteTokens() { ids_.fill(-1); }
  explicit ByteTokens(const Vocabulary& vocabulary);
  TokenId at(unsigned char byte) const { return ids_[byte]; }
  bool complete() const { return complete_; }
  // Appends the bytes of `character` (one character, maybe a stand-in for a byte); false, and nothing
  // appended, where a byte has no token.
  bool append(std::string_view character, const InvalidBytes& invalid, std::vector<TokenId>& out) const;

 private:
  std::array<TokenId, 256> ids_;
  bool complete_ = false;
};

// The byte that a token spelled "<0x0A>" stands for; -1 for any other spelling.
int byte_of_token(std::string_view spelling);

}  // namespace qiao::tokenization
