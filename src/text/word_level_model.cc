#include "text/word_level_model.h"

#include "base/error.h"
#include "base/quote.h"

namespace qiao::tokenization {

WordLevelModel::WordLevelModel(std::shared_ptr<const Vocabulary> vocabulary, std::vector<bool> matched,
                               TokenId unknown, std::string_view where)
    : vocabulary_(std::move(vocabulary)), matched_(std::move(matched)), unknown_(unknown), where_(where) {}

void WordLevelModel::encode(std::string_view word, const InvalidBytes&, std::vector<TokenId>& out) const {
  const TokenId id = vocabulary_->find(word);
  const bool found =
      id >= 0 && static_cast<size_t>(id) < matched_.size() && matched_[static_cast<size_t>(id)];
  if (!found && unknown_ < 0) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: the text has a word ({}) out of the vocabulary, and there is no unknown token", where_,
                quote_text(word, 40));
  }
  out.push_back(found ? id : unknown_);
}

}  // namespace qiao::tokenization
