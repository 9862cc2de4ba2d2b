// How two texts become one sequence of a model that judges pairs: [CLS] A [SEP] B [SEP].
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace qiao {

struct PairFrame {
  struct Item {
    enum class Kind : uint8_t { kSpecial, kFirst, kSecond };
    Kind kind = Kind::kSpecial;
    TokenId id = 0;    // of a special token
    int32_t type = 0;  // the segment that the model embeds with it
  };
  std::vector<Item> items;

  int64_t special_tokens() const;
  struct Encoded {
    std::vector<TokenId> tokens;
    std::vector<int32_t> types;
  };
  // Cuts the longer text first, as the tokenizers library does ("longest_first"), to at most `max_tokens` in
  // all, which must be special_tokens() or more.
  Encoded join(std::vector<TokenId> first, std::vector<TokenId> second, int64_t max_tokens) const;
};

// From the "post_processor" of tokenizer.json: TemplateProcessing, BertProcessing, RobertaProcessing, or a
// Sequence that holds one. Throws Error(kUnsupported) where none says how pairs are put together,
// kInvalidInput for ids outside [0, vocabulary).
PairFrame parse_pair_frame(const Json& post_processor, int64_t vocabulary, std::string_view where);

}  // namespace qiao
