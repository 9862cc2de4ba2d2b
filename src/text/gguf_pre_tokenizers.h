// The pre-tokenizers that GGUF files name (tokenizer.ggml.pre), as of October 2026.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/pre_tokenizer.h"

namespace qiao::tokenization {

struct GgufPreTokenizer {
  enum Flag : int {
    kIgnoreMerges = 1,
    kAddBos = 2,         // where the file does not say
    kEscapedSpaces = 4,  // " " is "▁", characters are themselves: no byte alphabet
    kWhitespace = 8,     // white space only separates; no byte alphabet
  };
  std::unique_ptr<PreTokenizer> splitter;
  int flags = 0;
};

// Throws Error(kUnsupported) that names an unknown `name` and lists the known ones.
GgufPreTokenizer make_gguf_pre_tokenizer(std::string_view name, std::string_view where);

// The same as tokenizer.json has it ("pre_tokenizer"; null where nothing cuts), and its flags. Also
// Error(kUnsupported) for one that only code can say.
struct GgufPreTokenizerJson {
  Json pre_tokenizer;
  int flags = 0;
};
GgufPreTokenizerJson gguf_pre_tokenizer_json(std::string_view name, std::string_view where);

// The name whose pre-tokenizer is the same as this one of a tokenizer.json; of several the one with these
// flags. Empty where there is none.
std::string_view find_gguf_pre_tokenizer(const Json& pre_tokenizer, bool ignores_merges, bool adds_bos);

std::vector<std::string_view> gguf_pre_tokenizer_names();
// One name of each: many mean the same.
std::vector<std::string_view> gguf_pre_tokenizer_kinds();

}  // namespace qiao::tokenization
