// The unigram language model: the segmentation of a text whose pieces have the highest sum of
// log-probabilities.
#pragma once

#include <memory>
#include <vector>

#include "text/token_model.h"
#include "text/trie.h"

namespace qiao::tokenization {

class UnigramModel : public TokenModel {
 public:
  // How scores add up, which decides between segmentations that are equally good: the tokenizers library's
  // way or SentencePiece's.
  enum class Sums { kDouble, kFloat };
  // `scores` by id; `matched[id]` false: that spelling never matches text (control and byte tokens of GGUF
  // files). unknown -1: text with a character of no piece is an error naming `where`.
  UnigramModel(std::shared_ptr<const Vocabulary> vocabulary, std::vector<double> scores,
               std::vector<bool> matched, TokenId unknown, bool byte_fallback, Sums sums,
               std::string_view where);

  void encode(std::string_view word, const InvalidBytes& invalid, std::vector<TokenId>& out) const override;
  bool keeps_bytes() const override { return byte_fallback_ && bytes_.complete(); }

 private:
  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<double> scores_;
  std::vector<bool> matched_;
  Trie trie_;
  TokenId unknown_;
  double unknown_score_ = 0;
  bool byte_fallback_;
  Sums sums_;
  ByteTokens bytes_;
  std::string where_;
};

}  // namespace qiao::tokenization
