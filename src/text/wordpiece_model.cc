#include "text/wordpiece_model.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::tokenization {

WordPieceModel::WordPieceModel(const std::shared_ptr<const Vocabulary>& vocabulary,
                               const std::vector<bool>& matched, Options options, std::string_view where)
    : options_(std::move(options)), where_(where) {
  for (TokenId id = 0; id < vocabulary->size(); ++id) {
    if (!matched[static_cast<size_t>(id)]) continue;
    const std::string_view spelling = vocabulary->spelling(id);
    if (options_.phantom_space) {
      if (spelling.starts_with(kSpace)) {
        initial_.insert(spelling.substr(kSpace.size()), id);
      } else {
        continuing_.insert(spelling, id);
      }
    } else {
      initial_.insert(spelling, id);
      if (spelling.starts_with(options_.continuing_prefix)) {
        continuing_.insert(spelling.substr(options_.continuing_prefix.size()), id);
      }
    }
  }
}

void WordPieceModel::encode(std::string_view word, const InvalidBytes&, std::vector<TokenId>& out) const {
  const size_t before = out.size();
  const auto is_start = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  const auto characters = static_cast<size_t>(std::count_if(word.begin(), word.end(), is_start));
  bool covered = characters <= options_.max_word_characters;
  for (size_t at = 0; covered && at < word.size();) {
    TokenId id = -1;
    const size_t n = (at == 0 ? initial_ : continuing_).longest_prefix(word.substr(at), &id);
    if (n == 0) covered = false;
    out.push_back(id);
    at += n;
  }
  if (covered) return;
  out.resize(before);
  if (options_.unknown < 0) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: the text has a word that no pieces cover, and there is no unknown token", where_);
  }
  out.push_back(options_.unknown);
}

}  // namespace qiao::tokenization
