// Byte-pair encoding: characters of a word, merged pair by pair in the order of the merges' ranks.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/token_model.h"

namespace qiao::tokenization {

struct BpeOptions {
  TokenId unknown = -1;  // -1: characters out of the vocabulary vanish
  bool fuse_unknown = false;
  bool byte_fallback = false;
  bool ignore_merges = false;       // a word that is a token is that token, whatever the merges say
  bool newline_runs_whole = false;  // the same for words of newlines only (Gemma 4's merges leave them out)
  std::string continuing_prefix;    // before every character but a word's first
  std::string word_suffix;          // after a word's last character
};

class BpeModel : public TokenModel {
 public:
  using MergeText = std::pair<std::string_view, std::string_view>;

  // Rank is the position in the list. A pair whose parts or whole are no tokens is an error naming `where`
  // and the merge (`strict`, as the tokenizers library), or left out (as llama.cpp). A pair listed twice has
  // its last rank (strict) or its first.
  // `matched[id]` false: that spelling never matches text (added and control tokens are found before).
  BpeModel(std::shared_ptr<const Vocabulary> vocabulary, const std::vector<MergeText>& merges,
           std::vector<bool> matched, BpeOptions options, bool strict, std::string_view where);

  void encode(std::string_view word, const InvalidBytes& invalid, std::vector<TokenId>& out) const override;
  bool keeps_bytes() const override { return options_.byte_fallback && bytes_.complete(); }
  size_t merge_count() const { return merge_count_; }

 private:
  struct Merge {
    uint64_t pair = UINT64_MAX;  // left << 32 | right
    uint32_t rank = 0;
    TokenId merged = -1;
  };
  const Merge* find(TokenId left, TokenId right) const;
  TokenId find_matched(std::string_view text) const;  // -1 where there is none
  void insert(TokenId left, TokenId right, uint32_t rank, TokenId merged, bool replace);
  void start(std::string_view word, const InvalidBytes& invalid, std::vector<TokenId>& symbols) const;
  TokenId character_token(std::string_view character, bool first, bool last) const;
  void merge_short(std::vector<TokenId>& symbols) const;
  void merge_long(std::vector<TokenId>& symbols) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<bool> matched_;
  BpeOptions options_;
  ByteTokens bytes_;
  std::vector<Merge> merges_;  // open addressing, a power of two
  size_t merge_count_ = 0;
  std::vector<TokenId> low_characters_;  // by code point, for the first few hundred
};

}  // namespace qiao::tokenization
