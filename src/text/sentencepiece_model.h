// SentencePiece's BPE: neighbours merge while the merged text is a piece, best score first.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/token_model.h"
#include "text/trie.h"

namespace qiao::tokenization {

// What a piece is for the model, after SentencePiece's ModelProto and GGUF's token types.
enum class PieceKind : uint8_t { kNotMatched, kNormal, kUserDefined, kUnused };

class SentencePieceModel : public TokenModel {
 public:
  // `scores` and `kinds` by id, as many as the vocabulary has. unknown -1: characters without a piece vanish.
  SentencePieceModel(std::shared_ptr<const Vocabulary> vocabulary, std::vector<float> scores,
                     std::vector<PieceKind> kinds, TokenId unknown);

  void encode(std::string_view word, const InvalidBytes& invalid, std::vector<TokenId>& out) const override;
  bool keeps_bytes() const override { return bytes_.complete(); }
  // No piece holds a "▁" after another character: a text may be cut before each such "▁" with the same
  // result.
  bool words_are_independent() const { return words_are_independent_; }

 private:
  struct Run;
  void emit(std::string_view piece, const Run& run, int depth, std::vector<TokenId>& out) const;
  TokenId find_piece(std::string_view text) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<float> scores_;
  std::vector<PieceKind> kinds_;
  TokenId unknown_;
  ByteTokens bytes_;
  Trie user_defined_;
  bool words_are_independent_ = true;
};

}  // namespace qiao::tokenization
