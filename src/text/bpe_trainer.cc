#include "text/bpe_trainer.h"

#include <algorithm>
#include <array>
#include <queue>

#include "base/error.h"
#include "base/quote.h"
#include "text/byte_alphabet.h"

namespace qiao::tokenization {
namespace {

constexpr std::string_view kLlama3Words =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\)re"
    R"re(r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";

using Pair = std::pair<int32_t, int32_t>;

struct PairHash {
  size_t operator()(const Pair& pair) const {
    uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(pair.first)) << 32 | static_cast<uint32_t>(pair.second);
    key = (key ^ (key >> 31)) * 0x9e3779b97f4a7c15u;
    return key ^ (key >> 29);
  }
};

struct Word {
  size_t begin;  // of its symbols
  uint32_t length;
  int64_t count;
};

// A merge that may come: the words in which its pair was seen since it was last looked at.
struct Candidate {
  Pair pair;
  int64_t count;
  std::vector<uint32_t> words;
};

class Merger {
 public:
  Merger(const WordCounts& counts, const BpeTrainerOptions& options);
  TrainedBpe run();

 private:
  struct Rarer {  // the commonest first, then the lowest ids
    bool operator()(const Candidate& a, const Candidate& b) const {
      return a.count != b.count ? a.count < b.count : a.pair > b.pair;
    }
  };
  int32_t token(const std::string& spelling);
  void add_words(const WordCounts& counts);
  void see(Pair pair, int64_t change, uint32_t word);
  void queue_seen();
  void merge(uint32_t word, Pair pair, int32_t merged);

  const BpeTrainerOptions& options_;
  TrainedBpe made_;
  std::unordered_map<std::string, int32_t> ids_;
  std::array<int32_t, 256> bytes_{};
  std::vector<int32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<Pair, int64_t, PairHash> counts_;
  std::unordered_map<Pair, std::vector<uint32_t>, PairHash> seen_;  // where pairs came up since queue_seen
  std::priority_queue<Candidate, std::vector<Candidate>, Rarer> queue_;
};

Merger::Merger(const WordCounts& counts, const BpeTrainerOptions& options) : options_(options) {
  const auto special = static_cast<int64_t>(options.special.size());
  if (options.vocabulary_size < 256 + special || options.vocabulary_size > (int64_t{1} << 24)) {
    throw_error(ErrorKind::kInvalidInput,
                "--vocab-size is {}; {} (the bytes and the special tokens) to {} was expected",
                options.vocabulary_size, 256 + special, int64_t{1} << 24);
  }
  for (const std::string& text : options.special) {
    if (text.empty() || ids_.contains(text)) {
      throw_error(ErrorKind::kInvalidInput,
                  "--special is {}; tokens that are not empty, each once, were expected", quote_text(text));
    }
    token(text);
  }
  // The alphabet in the order of its characters.
  std::vector<std::pair<std::string, int>> alphabet;
  for (int byte = 0; byte < 256; ++byte) {
    std::string character;
    append_byte_alphabet(std::string(1, static_cast<char>(byte)), {}, character);
    alphabet.emplace_back(character, byte);
  }
  std::ranges::sort(alphabet);  // UTF-8 sorts as its code points do
  for (const auto& [character, byte] : alphabet) bytes_[static_cast<size_t>(byte)] = token(character);
  add_words(counts);
}

int32_t Merger::token(const std::string& spelling) {
  const auto [found, is_new] = ids_.try_emplace(spelling, static_cast<int32_t>(made_.tokens.size()));
  if (is_new) made_.tokens.push_back(spelling);
  return found->second;
}

void Merger::see(Pair pair, int64_t change, uint32_t word) {
  counts_[pair] += change * words_[word].count;
  if (change < 0) return;
  std::vector<uint32_t>& places = seen_[pair];
  if (places.empty() || places.back() != word) places.push_back(word);  // words come in order
}

void Merger::add_words(const WordCounts& counts) {
  // In an order of their own: the map's is the library's.
  std::vector<std::pair<std::string_view, int64_t>> sorted(counts.words().begin(), counts.words().end());
  std::ranges::sort(sorted);
  for (const auto& [text, count] : sorted) {
    const auto word = static_cast<uint32_t>(words_.size());
    words_.push_back({symbols_.size(), static_cast<uint32_t>(text.size()), count});
    for (const char c : text) symbols_.push_back(bytes_[static_cast<unsigned char>(c)]);
    const int32_t* symbols = symbols_.data() + words_.back().begin;
    for (size_t i = 0; i + 1 < text.size(); ++i) see({symbols[i], symbols[i + 1]}, 1, word);
  }
  queue_seen();
}

void Merger::queue_seen() {
  for (auto& [pair, words] : seen_) {
    const int64_t count = counts_[pair];
    if (count > 0) queue_.push({pair, count, std::move(words)});
  }
  seen_.clear();
}

// Left to right, as encoding merges.
void Merger::merge(uint32_t index, Pair pair, int32_t merged) {
  Word& word = words_[index];
  int32_t* symbols = symbols_.data() + word.begin;
  uint32_t to = 0;
  for (uint32_t from = 0; from < word.length; ++to) {
    if (symbols[from] != pair.first || from + 1 == word.length || symbols[from + 1] != pair.second) {
      symbols[to] = symbols[from++];
      continue;
    }
    if (to > 0) {
      see({symbols[to - 1], pair.first}, -1, index);
      see({symbols[to - 1], merged}, 1, index);
    }
    from += 2;
    symbols[to] = merged;
    if (from < word.length) {
      see({pair.second, symbols[from]}, -1, index);
      see({merged, symbols[from]}, 1, index);
    }
  }
  word.length = to;
}

TrainedBpe Merger::run() {
  while (std::ssize(made_.tokens) < options_.vocabulary_size && !queue_.empty()) {
    Candidate top = std::move(const_cast<Candidate&>(queue_.top()));
    queue_.pop();
    if (const int64_t now = counts_[top.pair]; top.count != now) {
      top.count = now;
      queue_.push(std::move(top));
      continue;
    }
    if (top.count < 1 || top.count < options_.min_frequency) break;
    const int32_t merged = token(made_.tokens[static_cast<size_t>(top.pair.first)] +
                                 made_.tokens[static_cast<size_t>(top.pair.second)]);
    made_.merges.push_back(top.pair);
    for (const uint32_t word : top.words) merge(word, top.pair, merged);
    queue_seen();
  }
  return std::move(made_);
}

}  // namespace

WordCounts::WordCounts(std::string_view pre_tokenizer) {
  if (pre_tokenizer == "gpt2") {
    pre_tokenizer_ = make_regex_split(kGpt2Pattern, SplitBehavior::kIsolated, false, "gpt2");
  } else if (pre_tokenizer == "llama3") {
    pre_tokenizer_ = make_regex_split(kLlama3Words, SplitBehavior::kIsolated, false, "llama3");
  } else {
    throw_error(ErrorKind::kInvalidInput, "--pre-tokenizer is {}; gpt2 or llama3 was expected",
                quote_text(pre_tokenizer));
  }
}

void WordCounts::add(std::string_view text) {
  if (text.empty()) return;
  tokens_.text.assign(text);
  tokens_.words.assign(1, {0, static_cast<uint32_t>(text.size()), true});
  pre_tokenizer_->apply(tokens_, {});
  for (const PreTokens::Word& word : tokens_.words) {
    const std::string_view view = tokens_.view(word);
    if (const auto found = words_.find(view); found != words_.end()) {
      ++found->second;
    } else {
      words_.emplace(view, 1);
    }
  }
}

void WordCounts::add(const WordCounts& other) {
  for (const auto& [word, count] : other.words_) words_[word] += count;
}

TrainedBpe train_bpe(const WordCounts& counts, const BpeTrainerOptions& options) {
  return Merger(counts, options).run();
}

Json bpe_tokenizer_json(const TrainedBpe& bpe, const BpeTrainerOptions& options) {
  Json added = Json::array();
  for (size_t id = 0; id < options.special.size(); ++id) {
    added.push_back({{"id", id},
                     {"content", options.special[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const bool is_gpt2 = options.pre_tokenizer == "gpt2";
  const Json bytes = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", is_gpt2}};
  Json words = bytes;
  if (!is_gpt2) {
    const Json split = {{"type", "Split"},
                        {"pattern", {{"Regex", kLlama3Words}}},
                        {"behavior", "Isolated"},
                        {"invert", false}};
    words = {{"type", "Sequence"}, {"pretokenizers", Json::array({split, bytes})}};
  }
  Json vocabulary = Json::object(), merges = Json::array();
  for (size_t id = 0; id < bpe.tokens.size(); ++id) vocabulary[bpe.tokens[id]] = id;
  for (const auto& [left, right] : bpe.merges) {
    merges.push_back(
        Json::array({bpe.tokens[static_cast<size_t>(left)], bpe.tokens[static_cast<size_t>(right)]}));
  }
  const Json decoder = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", words},
          {"post_processor", nullptr},
          {"decoder", decoder},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocabulary},
            {"merges", merges}}}};
}

}  // namespace qiao::tokenization
