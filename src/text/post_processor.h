// What stands before and after an encoded text: BOS, EOS, [CLS], [SEP].
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace qiao::tokenization {

struct SpecialFrame {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
};

// The "post_processor" of tokenizer.json, for one text. Token ids have to be in [0, vocabulary). Throws
// Error(kInvalidInput / kUnsupported) naming `where`.
SpecialFrame parse_post_processor(const Json& json, int64_t vocabulary, std::string_view where,
                                  int depth = 0);

}  // namespace qiao::tokenization
