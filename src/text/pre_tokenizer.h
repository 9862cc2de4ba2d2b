// How a normalized text is cut into words for the model; from tokenizer.json or by pattern.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/regex.h"
#include "text/utf8.h"

namespace qiao::tokenization {

// A text and its words, as ranges of it in order; a step refines the ranges and may rewrite the text.
struct PreTokens {
  struct Word {
    uint32_t begin;
    uint32_t end;
    bool at_start;  // starts where the whole input starts (what Metaspace's "first" asks)
  };
  std::string text;
  std::vector<Word> words;
  std::string_view view(const Word& word) const {
    return std::string_view(text).substr(word.begin, word.end - word.begin);
  }
};

// Immutable; apply is safe from any thread and close to linear in the text's size.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(PreTokens& tokens, const InvalidBytes& invalid) const = 0;
  virtual bool writes_byte_alphabet() const { return false; }
};

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// The "pre_tokenizer" of tokenizer.json; nullptr for null. Throws Error(kInvalidInput / kUnsupported) naming
// `where`.
std::unique_ptr<PreTokenizer> parse_pre_tokenizer(const Json& json, std::string_view where, int depth = 0);

std::unique_ptr<PreTokenizer> make_regex_split(std::string_view pattern, SplitBehavior behavior, bool invert,
                                               std::string_view where);
// Groups of three digits, counted from the right, in each run of digits: what tokenizers write as a
// look-ahead over the rest of the run, quadratic in its length.
enum class DigitRuns {
  kAllNumbers,      // runs of \p{N}
  kBeforeBoundary,  // runs of \d that no word character follows
  kCutOnly,         // runs of \d, with a cut before each full group and none elsewhere
};
std::unique_ptr<PreTokenizer> make_digit_groups(DigitRuns runs);
// The byte alphabet, with GPT-2's pattern first if asked.
std::unique_ptr<PreTokenizer> make_byte_level(bool add_prefix_space, bool use_regex);
// A cut before each "▁" that follows another character: changes no result, and lets words be looked up again.
std::unique_ptr<PreTokenizer> make_word_boundaries();
std::unique_ptr<PreTokenizer> make_bert_pre_tokenizer();
std::unique_ptr<PreTokenizer> make_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts);

// GPT-2's pattern, which ByteLevel implies.
extern const std::string_view kGpt2Pattern;

}  // namespace qiao::tokenization
