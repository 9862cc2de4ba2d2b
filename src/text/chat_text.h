// A chat's text and tokens, alike wherever a model is talked to or taught.
#pragma once

#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace qiao {

// Adds bos_token and eos_token to a template's variables, where they are not set and the model has them.
void add_token_variables(const Tokenizer& tokenizer, Json& variables);

// Token ids of a rendered chat: special tokens parsed; BOS added only where the template did not write it.
std::vector<TokenId> encode_rendered_chat(const Tokenizer& tokenizer, std::string_view text);

// Every token at which generation stops, ascending: the tokenizer's and generation_config.json's (null where
// there is none).
std::vector<TokenId> find_end_tokens(const Tokenizer& tokenizer, const Json& generation_config);

}  // namespace qiao
