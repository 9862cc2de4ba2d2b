// The table of tokens: id to spelling and spelling to id.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace qiao::tokenization {

inline constexpr size_t kMaxTokenBytes = size_t{64} << 10;
// ▁ (U+2581): how SentencePiece spells a space.
inline constexpr std::string_view kSpace = "\xE2\x96\x81";

inline constexpr size_t kMaxTokens = size_t{1} << 24;

// Built by set(), then read-only. Ids may have gaps (an empty spelling that no text finds).
class Vocabulary {
 public:
  // Grows to hold id. Where a spelling comes twice the later id is found; both ids spell it. Throws
  // Error(kInvalidInput) naming `where` for an id out of [0, kMaxTokens) or a spelling over kMaxTokenBytes.
  void set(int64_t id, std::string_view spelling, std::string_view where);
  void reserve(size_t tokens, size_t bytes);

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  bool has(TokenId id) const {
    return id >= 0 && id < size() && tokens_[static_cast<size_t>(id)].length != kGap;
  }
  std::string_view spelling(TokenId id) const;    // empty where there is none
  TokenId find(std::string_view spelling) const;  // -1 where absent
  size_t longest() const { return longest_; }     // bytes of the longest spelling

 private:
  static constexpr uint32_t kGap = UINT32_MAX;
  struct Token {
    uint64_t offset = 0;
    uint32_t length = kGap;
  };
  struct Slot {
    uint32_t hash = 0;
    TokenId id = -1;
  };
  void insert(TokenId id);
  void rehash(size_t slots);

  std::string bytes_;
  std::vector<Token> tokens_;
  std::vector<Slot> slots_;  // open addressing, a power of two
  size_t used_ = 0;
  size_t longest_ = 0;
};

// FNV-like 64-bit hash of short strings, eight bytes a step.
uint64_t hash_bytes(std::string_view bytes);

}  // namespace qiao::tokenization
