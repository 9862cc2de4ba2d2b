#include "train/documents.h"

#include "base/error.h"

namespace qiao::train {

std::vector<int32_t> read_token_ids(const Json& tokens, std::string_view field, int64_t vocabulary) {
  std::vector<int32_t> ids;
  ids.reserve(tokens.size());
  for (const Json& token : tokens) {
    if (!token.is_number_integer() || token < 0 || token >= vocabulary) {
      throw_error(ErrorKind::kInvalidInput, "{} holds {}; ids below {} were expected", field,
                  dump_json(token).substr(0, 80), vocabulary);
    }
    ids.push_back(token.get<int32_t>());
  }
  return ids;
}

std::vector<Document> PlainDocuments::make(const Row& row) {
  Document document;
  const auto tokens = row.json.is_object() ? row.json.find("tokens") : row.json.end();
  const auto text = row.json.is_object() ? row.json.find("text") : row.json.end();
  if (tokens != row.json.end() && tokens->is_array()) {
    document.tokens = read_token_ids(*tokens, "tokens", vocabulary_);
  } else if (text != row.json.end() && text->is_string() && tokenizer_ != nullptr) {
    document.tokens = tokenizer_->encode(text->get_ref<const std::string&>());
    const std::optional<TokenId> eos = tokenizer_->eos();
    if (eos && row.ends) document.tokens.push_back(*eos);
  } else {
    throw_error(ErrorKind::kInvalidInput, "{}",
                tokenizer_ != nullptr
                    ? R"("tokens" (a list of ids) or "text" (a string) was expected)"
                    : R"("tokens" (a list of ids) was expected: the model has no tokenizer)");
  }
  return {std::move(document)};
}

}  // namespace qiao::train
