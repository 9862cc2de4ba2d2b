// WordLevel: a word of the vocabulary is that token, any other the unknown one.
#pragma once

#include <memory>
#include <string>

#include "text/token_model.h"

namespace qiao::tokenization {

class WordLevelModel : public TokenModel {
 public:
  // `unknown` -1: a word out of the vocabulary is an error naming `where`.
  WordLevelModel(std::shared_ptr<const Vocabulary> vocabulary, std::vector<bool> matched, TokenId unknown,
                 std::string_view where);

  void encode(std::string_view word, const InvalidBytes& invalid, std::vector<TokenId>& out) const override;
  bool keeps_bytes() const override { return false; }

 private:
  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<bool> matched_;  // by id: added tokens are no words
  TokenId unknown_;
  std::string where_;
};

}  // namespace qiao::tokenization
