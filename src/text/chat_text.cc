#include "text/chat_text.h"

#include <algorithm>

namespace qiao {

void add_token_variables(const Tokenizer& tokenizer, Json& variables) {
  const auto add = [&](const char* name, std::optional<TokenId> id) {
    if (id && !variables.contains(name)) variables[name] = tokenizer.token_bytes(*id);
  };
  add("bos_token", tokenizer.bos());
  add("eos_token", tokenizer.eos());
}

std::vector<TokenId> encode_rendered_chat(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<TokenId> ids = tokenizer.encode(text, {.parse_special = true});
  const std::optional<TokenId> bos = tokenizer.bos();
  if (bos && tokenizer.adds_bos() && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
  return ids;
}

std::vector<TokenId> find_end_tokens(const Tokenizer& tokenizer, const Json& generation_config) {
  std::vector<TokenId> ids = tokenizer.end_of_generation();
  const auto add = [&](const Json& id) {
    if (id.is_number_integer() && id >= 0 && id <= INT32_MAX) ids.push_back(id.get<TokenId>());
  };
  if (generation_config.is_object() && generation_config.contains("eos_token_id")) {
    const Json& eos = generation_config["eos_token_id"];  // a number or a list of numbers
    if (eos.is_array()) {
      for (const Json& id : eos) add(id);
    } else {
      add(eos);
    }
  }
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace qiao
