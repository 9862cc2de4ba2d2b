#include "text/pre_tokenizer.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/quote.h"
#include "text/byte_alphabet.h"
#include "text/json_fields.h"
#include "text/library_tables.h"
#include "text/unicode.h"
#include "text/vocabulary.h"

namespace qiao::tokenization {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// Cuts [0, size) at `matches` (in order, without overlap) and gives the kept ranges to `keep(begin, end)`.
template <typename Keep>
void cut(size_t size, const std::vector<Match>& matches, SplitBehavior behavior, bool invert, Keep keep) {
  struct Part {
    uint32_t begin;
    uint32_t end;
    bool match;
  };
  thread_local std::vector<Part> parts;
  parts.clear();
  uint32_t at = 0;
  for (const Match& match : matches) {
    if (match.begin > at) parts.push_back({at, match.begin, invert});
    parts.push_back({match.begin, match.end, !invert});
    at = match.end;
  }
  if (at < size) parts.push_back({at, static_cast<uint32_t>(size), invert});
  switch (behavior) {
    case SplitBehavior::kIsolated:
      for (const Part& part : parts) keep(part.begin, part.end);
      return;
    case SplitBehavior::kRemoved:
      for (const Part& part : parts) {
        if (!part.match) keep(part.begin, part.end);
      }
      return;
    case SplitBehavior::kContiguous:
      for (size_t i = 0; i < parts.size();) {
        size_t last = i;
        while (last + 1 < parts.size() && parts[last + 1].match == parts[i].match) ++last;
        keep(parts[i].begin, parts[last].end);
        i = last + 1;
      }
      return;
    case SplitBehavior::kMergedWithPrevious:
      for (size_t i = 0; i < parts.size();) {
        size_t last = i;
        if (!parts[i].match && i + 1 < parts.size() && parts[i + 1].match) ++last;
        keep(parts[i].begin, parts[last].end);
        i = last + 1;
      }
      return;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = 0; i < parts.size();) {
        size_t last = i;
        if (parts[i].match && i + 1 < parts.size() && !parts[i + 1].match) ++last;
        keep(parts[i].begin, parts[last].end);
        i = last + 1;
      }
      return;
  }
}

// A step that finds matches in each word and cuts there.
class Splitter : public PreTokenizer {
 public:
  Splitter(SplitBehavior behavior, bool invert) : behavior_(behavior), invert_(invert) {}
  void apply(PreTokens& tokens, const InvalidBytes&) const override {
    std::vector<PreTokens::Word> words;
    words.reserve(tokens.words.size());
    std::vector<Match> matches;
    for (const PreTokens::Word& word : tokens.words) {
      matches.clear();
      find(tokens.view(word), matches);
      cut(word.end - word.begin, matches, behavior_, invert_, [&](uint32_t begin, uint32_t end) {
        if (begin < end) words.push_back({word.begin + begin, word.begin + end, word.at_start && begin == 0});
      });
    }
    tokens.words = std::move(words);
  }

 protected:
  virtual void find(std::string_view text, std::vector<Match>& matches) const = 0;

 private:
  SplitBehavior behavior_;
  bool invert_;
};

class RegexSplitter : public Splitter {
 public:
  RegexSplitter(std::string_view pattern, SplitBehavior behavior, bool invert, std::string_view where)
      : Splitter(behavior, invert), regex_(pattern, where) {}

 protected:
  void find(std::string_view text, std::vector<Match>& matches) const override {
    regex_.find_all(text, matches);
  }

 private:
  Regex regex_;
};

class LiteralSplitter : public Splitter {
 public:
  LiteralSplitter(std::string literal, SplitBehavior behavior, bool invert)
      : Splitter(behavior, invert), literal_(std::move(literal)) {}

 protected:
  void find(std::string_view text, std::vector<Match>& matches) const override {
    if (literal_.empty()) return;
    for (size_t at = text.find(literal_); at != std::string_view::npos; at = text.find(literal_, at)) {
      matches.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(at + literal_.size())});
      at += literal_.size();
    }
  }

 private:
  std::string literal_;
};

// Each character that the predicate accepts is a match of its own.
class CharacterSplitter : public Splitter {
 public:
  CharacterSplitter(bool (*matches)(char32_t), SplitBehavior behavior)
      : Splitter(behavior, false), accepts_(matches) {}

 protected:
  void find(std::string_view text, std::vector<Match>& matches) const override {
    for (size_t at = 0; at < text.size();) {
      size_t n;
      const char32_t c = utf8_decode(text, at, &n);
      if (accepts_(c)) matches.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(at + n)});
      at += n;
    }
  }

 private:
  bool (*accepts_)(char32_t);
};

// \w+|[^\w\s]+ as words, the rest dropped.
class WhitespaceSplitter : public Splitter {
 public:
  WhitespaceSplitter() : Splitter(SplitBehavior::kRemoved, true) {}

 protected:
  void find(std::string_view text, std::vector<Match>& matches) const override {
    int open = 0;  // the kind of the run that is open: 0 none, 1 word, 2 other
    for (size_t at = 0; at < text.size();) {
      size_t n;
      const char32_t c = utf8_decode(text, at, &n);
      const int kind = is_space(c) ? 0 : is_word(c) ? 1 : 2;
      const auto begin = static_cast<uint32_t>(at);
      at += n;
      const auto end = static_cast<uint32_t>(at);
      if (kind != 0 && kind == open) {
        matches.back().end = end;
      } else if (kind != 0) {
        matches.push_back({begin, end});
      }
      open = kind;
    }
  }
};

class FixedLengthSplitter : public Splitter {
 public:
  explicit FixedLengthSplitter(int64_t length) : Splitter(SplitBehavior::kIsolated, false), length_(length) {}

 protected:
  void find(std::string_view text, std::vector<Match>& matches) const override {
    for (size_t at = 0; at < text.size();) {
      const size_t begin = at;
      for (int64_t i = 0; i < length_ && at < text.size(); ++i)
        at += std::max<size_t>(utf8_length(text, at), 1);
      matches.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(at)});
    }
  }

 private:
  int64_t length_;
};

class DigitGroups : public Splitter {
 public:
  explicit DigitGroups(DigitRuns runs) : Splitter(SplitBehavior::kIsolated, false), runs_(runs) {}

 protected:
  void find(std::string_view text, std::vector<Match>& matches) const override {
    std::vector<uint32_t> starts;
    for (size_t at = 0; at < text.size();) {
      size_t n;
      char32_t c = utf8_decode(text, at, &n);
      if (!is_digit(c)) {
        at += n;
        continue;
      }
      starts.clear();
      while (at < text.size() && is_digit(c = utf8_decode(text, at, &n))) {
        starts.push_back(static_cast<uint32_t>(at));
        at += n;
      }
      if (runs_ == DigitRuns::kBeforeBoundary && at < text.size() && is_word(utf8_decode(text, at, &n)))
        continue;
      starts.push_back(static_cast<uint32_t>(at));
      const size_t digits = starts.size() - 1;
      for (size_t i = 0, group = (digits - 1) % 3 + 1; i < digits; i += group, group = 3) {
        if (runs_ != DigitRuns::kCutOnly) {
          matches.push_back({starts[i], starts[i + group]});
        } else if (group == 3) {
          matches.push_back({starts[i], starts[i]});
        }
      }
    }
  }

 private:
  bool is_digit(char32_t c) const {
    return runs_ == DigitRuns::kAllNumbers ? is_number(c) : category(c) == Category::kNd;
  }
  DigitRuns runs_;
};

class WordBoundaries : public Splitter {
 public:
  WordBoundaries() : Splitter(SplitBehavior::kIsolated, false) {}

 protected:
  void find(std::string_view text, std::vector<Match>& matches) const override {
    uint32_t begin = 0;
    for (size_t at = text.find(kSpace); at != std::string_view::npos;
         at = text.find(kSpace, at + kSpace.size())) {
      const bool after_space =
          at >= kSpace.size() && text.substr(at - kSpace.size(), kSpace.size()) == kSpace;
      if (at == 0 || after_space) continue;
      matches.push_back({begin, static_cast<uint32_t>(at)});
      begin = static_cast<uint32_t>(at);
    }
  }
};

// A step that rewrites each word.
class Rewriter : public PreTokenizer {
 public:
  void apply(PreTokens& tokens, const InvalidBytes& invalid) const override {
    std::string text;
    text.reserve(tokens.text.size() + tokens.text.size() / 2);
    for (PreTokens::Word& word : tokens.words) {
      const auto begin = static_cast<uint32_t>(text.size());
      rewrite(tokens.view(word), word.at_start, invalid, text);
      if (text.size() > kMaxBytes)
        throw_error(ErrorKind::kTooLarge, "tokenizer: a text over {} bytes", kMaxBytes);
      word.begin = begin;
      word.end = static_cast<uint32_t>(text.size());
    }
    tokens.text = std::move(text);
  }

 protected:
  static constexpr size_t kMaxBytes = size_t{1} << 31;
  virtual void rewrite(std::string_view word, bool at_start, const InvalidBytes& invalid,
                       std::string& out) const = 0;
};

class ByteAlphabet : public Rewriter {
 public:
  bool writes_byte_alphabet() const override { return true; }

 protected:
  void rewrite(std::string_view word, bool, const InvalidBytes& invalid, std::string& out) const override {
    append_byte_alphabet(word, invalid, out);
  }
};

class PrefixSpace : public Rewriter {
 protected:
  void rewrite(std::string_view word, bool, const InvalidBytes&, std::string& out) const override {
    if (!word.starts_with(' ')) out.push_back(' ');
    out += word;
  }
};

enum class PrependScheme { kAlways, kFirst, kNever };

class Metaspace : public Rewriter {
 public:
  Metaspace(std::string replacement, PrependScheme scheme, bool split)
      : replacement_(std::move(replacement)), scheme_(scheme) {
    if (split)
      split_ = std::make_unique<LiteralSplitter>(replacement_, SplitBehavior::kMergedWithNext, false);
  }
  void apply(PreTokens& tokens, const InvalidBytes& invalid) const override {
    Rewriter::apply(tokens, invalid);
    if (split_ != nullptr) split_->apply(tokens, invalid);
  }

 protected:
  void rewrite(std::string_view word, bool at_start, const InvalidBytes&, std::string& out) const override {
    const bool wanted = scheme_ == PrependScheme::kAlways || (scheme_ == PrependScheme::kFirst && at_start);
    if (wanted && !word.starts_with(' ') && !word.starts_with(replacement_)) out += replacement_;
    for (const char c : word) {
      if (c == ' ') {
        out += replacement_;
      } else {
        out.push_back(c);
      }
    }
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  std::unique_ptr<LiteralSplitter> split_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void apply(PreTokens& tokens, const InvalidBytes& invalid) const override {
    for (const auto& part : parts_) part->apply(tokens, invalid);
  }
  bool writes_byte_alphabet() const override {
    return std::any_of(parts_.begin(), parts_.end(),
                       [](const auto& part) { return part->writes_byte_alphabet(); });
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

SplitBehavior parse_behavior(const Json& json, std::string_view fallback, std::string_view where) {
  const std::string name = string_field(json, "behavior", fallback, where);
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  throw_error(ErrorKind::kInvalidInput, "{}.behavior: {} is not a split behavior", where, quote_text(name));
}

std::unique_ptr<PreTokenizer> parse_metaspace(const Json& json, std::string_view where) {
  const std::string replacement = string_field(json, "replacement", kSpace, where);
  if (replacement.empty() || utf8_length(replacement, 0) != replacement.size()) {
    throw_error(ErrorKind::kInvalidInput, "{}.replacement: expected one character", where);
  }
  // Older files say add_prefix_space.
  const bool prefix = bool_field(json, "add_prefix_space", true, where);
  const std::string scheme = string_field(json, "prepend_scheme", prefix ? "always" : "never", where);
  PrependScheme parsed = PrependScheme::kAlways;
  if (scheme == "first") {
    parsed = PrependScheme::kFirst;
  } else if (scheme == "never") {
    parsed = PrependScheme::kNever;
  } else if (scheme != "always") {
    throw_error(ErrorKind::kInvalidInput, "{}.prepend_scheme: expected always, first or never", where);
  }
  return std::make_unique<Metaspace>(replacement, parsed, bool_field(json, "split", true, where));
}

}  // namespace

std::unique_ptr<PreTokenizer> make_regex_split(std::string_view pattern, SplitBehavior behavior, bool invert,
                                               std::string_view where) {
  // Patterns that look ahead over a whole run of digits at each digit, and so need a scanner to be linear.
  if (behavior == SplitBehavior::kIsolated && !invert && pattern == R"(\d{1,3}(?=(?:\d{3})*\b))") {
    return make_digit_groups(DigitRuns::kBeforeBoundary);
  }
  if (pattern == R"((?=(\d{3})+(?!\d)))") return make_digit_groups(DigitRuns::kCutOnly);
  return std::make_unique<RegexSplitter>(pattern, behavior, invert, where);
}

std::unique_ptr<PreTokenizer> make_digit_groups(DigitRuns runs) {
  return std::make_unique<DigitGroups>(runs);
}

std::unique_ptr<PreTokenizer> make_byte_level(bool add_prefix_space, bool use_regex) {
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  if (add_prefix_space) parts.push_back(std::make_unique<PrefixSpace>());
  if (use_regex) {
    parts.push_back(
        std::make_unique<RegexSplitter>(kGpt2Pattern, SplitBehavior::kIsolated, false, "ByteLevel"));
  }
  parts.push_back(std::make_unique<ByteAlphabet>());
  return make_sequence(std::move(parts));
}

std::unique_ptr<PreTokenizer> make_word_boundaries() { return std::make_unique<WordBoundaries>(); }

std::unique_ptr<PreTokenizer> make_bert_pre_tokenizer() {
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  parts.push_back(std::make_unique<CharacterSplitter>(is_space, SplitBehavior::kRemoved));
  parts.push_back(std::make_unique<CharacterSplitter>(is_library_punctuation, SplitBehavior::kIsolated));
  return make_sequence(std::move(parts));
}

std::unique_ptr<PreTokenizer> make_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

std::unique_ptr<PreTokenizer> parse_pre_tokenizer(const Json& json, std::string_view where, int depth) {
  if (json.is_null()) return nullptr;
  if (depth > kMaxNesting)
    throw_error(ErrorKind::kUnsupported, "{}: nested deeper than {}", where, kMaxNesting);
  const std::string& type = type_field(json, where);
  if (type == "Sequence") {
    std::vector<std::unique_ptr<PreTokenizer>> parts;
    for (const Json& part : required_array(json, "pretokenizers", where)) {
      if (auto parsed = parse_pre_tokenizer(part, where, depth + 1)) parts.push_back(std::move(parsed));
    }
    return make_sequence(std::move(parts));
  }
  if (type == "ByteLevel") {
    return make_byte_level(bool_field(json, "add_prefix_space", true, where),
                           bool_field(json, "use_regex", true, where));
  }
  if (type == "Split") {
    const PatternText pattern = pattern_field(json, "pattern", where);
    const SplitBehavior behavior = parse_behavior(json, "", where);
    const bool invert = bool_field(json, "invert", false, where);
    if (pattern.is_regex)
      return make_regex_split(pattern.text, behavior, invert, std::string(where) + ".pattern");
    return std::make_unique<LiteralSplitter>(pattern.text, behavior, invert);
  }
  if (type == "Digits") {
    return std::make_unique<CharacterSplitter>(is_number, bool_field(json, "individual_digits", false, where)
                                                              ? SplitBehavior::kIsolated
                                                              : SplitBehavior::kContiguous);
  }
  if (type == "Punctuation") {
    return std::make_unique<CharacterSplitter>(is_library_punctuation,
                                               parse_behavior(json, "Isolated", where));
  }
  if (type == "Whitespace") return std::make_unique<WhitespaceSplitter>();
  if (type == "WhitespaceSplit")
    return std::make_unique<CharacterSplitter>(is_space, SplitBehavior::kRemoved);
  if (type == "BertPreTokenizer") return make_bert_pre_tokenizer();
  if (type == "Metaspace") return parse_metaspace(json, where);
  if (type == "CharDelimiterSplit") {
    return std::make_unique<LiteralSplitter>(required_string(json, "delimiter", where),
                                             SplitBehavior::kRemoved, false);
  }
  if (type == "FixedLength") {
    const int64_t length = int_field(json, "length", 5, where);
    if (length <= 0) throw_error(ErrorKind::kInvalidInput, "{}.length: expected a positive number", where);
    return std::make_unique<FixedLengthSplitter>(length);
  }
  throw_error(ErrorKind::kUnsupported, "{}: pre-tokenizer {} is not supported", where, quote_text(type));
}

}  // namespace qiao::tokenization
