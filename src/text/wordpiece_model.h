// WordPiece: the longest piece that a word starts with, then the longest continuation, and so on.
#pragma once

#include <memory>
#include <string>

#include "text/token_model.h"
#include "text/trie.h"

namespace qiao::tokenization {

class WordPieceModel : public TokenModel {
 public:
  struct Options {
    TokenId unknown = -1;  // of a word that cannot be covered; -1: such a word is an error
    size_t max_word_characters = 100;
    // tokenizer.json: pieces inside a word carry this prefix ("##"). GGUF: pieces at a word's start carry
    // "▁".
    std::string continuing_prefix = "##";
    bool phantom_space = false;
  };
  WordPieceModel(const std::shared_ptr<const Vocabulary>& vocabulary, const std::vector<bool>& matched,
                 Options options, std::string_view where);

  void encode(std::string_view word, const InvalidBytes& invalid, std::vector<TokenId>& out) const override;
  bool keeps_bytes() const override { return false; }

 private:
  Options options_;
  Trie initial_;
  Trie continuing_;
  std::string where_;
};

}  // namespace qiao::tokenization
