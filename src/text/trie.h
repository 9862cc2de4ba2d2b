// A byte trie over token spellings: all prefixes of a text that are tokens, shortest first.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace qiao::tokenization {

// Built by insert(), then read-only. Edges live in one open-addressing table: one probe a byte, whatever the
// fan-out.
class Trie {
 public:
  static constexpr uint32_t kRoot = 0;
  static constexpr uint32_t kNone = UINT32_MAX;

  Trie() : values_(1, -1), slots_(64) {}

  static constexpr size_t kMaxNodes = size_t{1} << 23;  // published vocabularies need under two million

  // A key inserted again takes the new value. An empty key is ignored. Throws Error(kTooLarge) over
  // kMaxNodes.
  void insert(std::string_view key, TokenId value);
  uint32_t child(uint32_t node, unsigned char byte) const;
  TokenId value(uint32_t node) const { return values_[node]; }  // -1: no key ends here
  bool empty() const { return values_.size() == 1; }

  // Length of the longest key that `text` starts with and its value; 0 where none.
  size_t longest_prefix(std::string_view text, TokenId* value) const;

 private:
  struct Slot {
    uint64_t edge = UINT64_MAX;  // parent * 256 + byte
    uint32_t node = kNone;
  };
  static uint64_t mix(uint64_t edge) {
    edge *= 0x9E3779B97F4A7C15u;
    return edge ^ (edge >> 32);
  }
  void grow();

  std::vector<TokenId> values_;  // by node
  std::vector<Slot> slots_;
};

}  // namespace qiao::tokenization
