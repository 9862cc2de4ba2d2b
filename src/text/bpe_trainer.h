// Learns a byte-level BPE tokenizer from texts (Sennrich et al. 2016; GPT-2's bytes), as the trainer of
// Hugging Face's tokenizers library does: the same words, the same merges, ties broken as it breaks them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "text/pre_tokenizer.h"

namespace qiao::tokenization {

struct BpeTrainerOptions {
  int64_t vocabulary_size = 32000;       // special tokens and the 256 bytes with them
  std::vector<std::string> special;      // the first ids, in order
  std::string pre_tokenizer = "llama3";  // "gpt2" or "llama3": how texts are cut into words
  int64_t min_frequency = 0;             // a pair that is rarer is not merged
};

// Finds a std::string by a view of another's bytes.
struct WordHash {
  using is_transparent = void;
  size_t operator()(std::string_view word) const { return std::hash<std::string_view>()(word); }
};
using WordMap = std::unordered_map<std::string, int64_t, WordHash, std::equal_to<>>;

// How often each word came. One thread at a time.
class WordCounts {
 public:
  // Throws Error(kInvalidInput) for a pre-tokenizer of another name.
  explicit WordCounts(std::string_view pre_tokenizer);
  void add(std::string_view text);  // well-formed UTF-8
  void add(const WordCounts& other);
  const WordMap& words() const { return words_; }

 private:
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  PreTokens tokens_;
  WordMap words_;
};

struct TrainedBpe {
  std::vector<std::string> tokens;                  // by id, in the byte alphabet
  std::vector<std::pair<int32_t, int32_t>> merges;  // ids, first merged first
};

// Deterministic: by the counts alone. Throws Error(kInvalidInput) for a vocabulary that does not hold the
// bytes and the special tokens, and for special tokens that are empty or come twice. Ends early where no pair
// is left.
TrainedBpe train_bpe(const WordCounts& counts, const BpeTrainerOptions& options);

// tokenizer.json, as the tokenizers library reads it.
Json bpe_tokenizer_json(const TrainedBpe& bpe, const BpeTrainerOptions& options);

}  // namespace qiao::tokenization
