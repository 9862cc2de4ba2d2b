// SentencePiece's precompiled character map: a double-array trie (darts-clone) of texts and what replaces
// them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qiao::tokenization {

// Immutable; safe from any thread.
class Charsmap {
 public:
  // `blob`: 32-bit little-endian size of the trie in bytes, the trie, NUL-terminated replacements. Throws
  // Error(kInvalidInput) naming `where` where the sizes do not fit.
  Charsmap(std::string_view blob, std::string_view where);

  struct Found {
    size_t length = 0;  // 0: nothing found
    std::string_view replacement;
  };
  // The longest, or the shortest, entry that `text` starts with. Throws Error(kInvalidInput) where the trie
  // points out of itself.
  Found longest(std::string_view text) const { return search(text, false); }
  Found shortest(std::string_view text) const { return search(text, true); }

 private:
  Found search(std::string_view text, bool first) const;
  uint32_t unit(size_t index) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
  std::string where_;
};

}  // namespace qiao::tokenization
