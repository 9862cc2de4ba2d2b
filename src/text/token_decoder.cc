#include "text/token_decoder.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"
#include "text/byte_alphabet.h"
#include "text/json_fields.h"
#include "text/regex.h"
#include "text/token_model.h"
#include "text/utf8.h"

namespace qiao::tokenization {
namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  size_t at = text.find(from);
  if (from.empty() || at == std::string::npos) return;
  std::string out;
  size_t last = 0;
  for (; at != std::string::npos; at = text.find(from, last)) {
    out.append(text, last, at - last).append(to);
    last = at + from.size();
  }
  text = out.append(text, last);
}

class ByteLevelDecoder : public TokenDecoder {
 public:
  void apply(std::vector<std::string>& pieces) const override {
    for (std::string& piece : pieces) {
      std::string bytes;
      if (append_from_byte_alphabet(piece, bytes)) piece = std::move(bytes);
    }
  }
};

class ReplaceDecoder : public TokenDecoder {
 public:
  ReplaceDecoder(PatternText pattern, std::string content, std::string_view where)
      : pattern_(std::move(pattern)), content_(std::move(content)) {
    if (pattern_.is_regex) regex_ = std::make_unique<Regex>(pattern_.text, where);
  }
  void apply(std::vector<std::string>& pieces) const override {
    std::vector<Match> matches;
    for (std::string& piece : pieces) {
      if (regex_ == nullptr) {
        replace_all(piece, pattern_.text, content_);
        continue;
      }
      if (!utf8_valid(piece)) continue;  // bytes of a byte token: no pattern of text means them
      regex_->find_all(piece, matches);
      std::string out;
      size_t at = 0;
      for (const Match& match : matches) {
        out.append(piece, at, match.begin - at).append(content_);
        at = match.end;
      }
      piece = out.append(piece, at);
    }
  }

 private:
  PatternText pattern_;
  std::string content_;
  std::unique_ptr<Regex> regex_;
};

class ByteFallbackDecoder : public TokenDecoder {
 public:
  void apply(std::vector<std::string>& pieces) const override {
    for (std::string& piece : pieces) {
      if (const int byte = byte_of_token(piece); byte >= 0) piece.assign(1, static_cast<char>(byte));
    }
  }
};

class FuseDecoder : public TokenDecoder {
 public:
  void apply(std::vector<std::string>& pieces) const override {
    std::string all;
    for (const std::string& piece : pieces) all += piece;
    pieces.assign(1, all);
  }
};

class StripDecoder : public TokenDecoder {
 public:
  StripDecoder(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void apply(std::vector<std::string>& pieces) const override {
    for (std::string& piece : pieces) {
      size_t begin = 0;
      for (int64_t i = 0; i < start_ && piece.compare(begin, content_.size(), content_) == 0; ++i) {
        begin += content_.size();
      }
      size_t end = piece.size();
      for (int64_t i = 0; i < stop_ && end >= begin + content_.size() &&
                          piece.compare(end - content_.size(), content_.size(), content_) == 0;
           ++i) {
        end -= content_.size();
      }
      piece = piece.substr(begin, end - begin);
    }
  }

 private:
  std::string content_;
  int64_t start_;
  int64_t stop_;
};

class MetaspaceDecoder : public TokenDecoder {
 public:
  MetaspaceDecoder(std::string replacement, bool strip_first)
      : replacement_(std::move(replacement)), strip_first_(strip_first) {}
  void apply(std::vector<std::string>& pieces) const override {
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (i > 0 || !strip_first_) {
        replace_all(pieces[i], replacement_, " ");
        continue;
      }
      // Of the first piece every "▁" goes: it stands where the prefix was put.
      replace_all(pieces[i], replacement_, "");
    }
  }

 private:
  std::string replacement_;
  bool strip_first_;
};

void clean_up(std::string& text) {
  constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) replace_all(text, from, to);
}

class WordPieceDecoder : public TokenDecoder {
 public:
  WordPieceDecoder(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  void apply(std::vector<std::string>& pieces) const override {
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (i > 0) {
        if (pieces[i].starts_with(prefix_)) {
          pieces[i].erase(0, prefix_.size());
        } else {
          pieces[i].insert(pieces[i].begin(), ' ');
        }
      }
      if (cleanup_) clean_up(pieces[i]);
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

// Speech models: a token is written once for all the steps that repeat it.
class CtcDecoder : public TokenDecoder {
 public:
  CtcDecoder(std::string pad, std::string delimiter, bool cleanup)
      : pad_(std::move(pad)), delimiter_(std::move(delimiter)), cleanup_(cleanup) {}
  void apply(std::vector<std::string>& pieces) const override {
    pieces.erase(std::unique(pieces.begin(), pieces.end()), pieces.end());
    for (std::string& piece : pieces) {
      replace_all(piece, pad_, "");
      if (!cleanup_) continue;
      clean_up(piece);
      replace_all(piece, delimiter_, " ");
    }
    std::erase(pieces, std::string());
  }

 private:
  std::string pad_;
  std::string delimiter_;
  bool cleanup_;
};

class PhantomSpaceDecoder : public TokenDecoder {
 public:
  void apply(std::vector<std::string>& pieces) const override {
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i].starts_with(kSpace)) pieces[i].erase(0, i > 0 ? kSpace.size() - 1 : kSpace.size());
      if (pieces[i].starts_with(kSpace.back())) pieces[i].front() = ' ';
      clean_up(pieces[i]);
    }
  }
};

class BpeDecoder : public TokenDecoder {
 public:
  explicit BpeDecoder(std::string suffix) : suffix_(std::move(suffix)) {}
  void apply(std::vector<std::string>& pieces) const override {
    for (size_t i = 0; i < pieces.size(); ++i)
      replace_all(pieces[i], suffix_, i + 1 == pieces.size() ? "" : " ");
  }

 private:
  std::string suffix_;
};

class SentencePieceDecoder : public TokenDecoder {
 public:
  explicit SentencePieceDecoder(bool strip_first) : strip_first_(strip_first) {}
  void apply(std::vector<std::string>& pieces) const override {
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (const int byte = byte_of_token(pieces[i]); byte >= 0) {
        pieces[i].assign(1, static_cast<char>(byte));
        continue;
      }
      replace_all(pieces[i], kSpace, " ");
      if (i == 0 && strip_first_ && pieces[i].starts_with(' ')) pieces[i].erase(0, 1);
    }
  }

 private:
  bool strip_first_;
};

class SequenceDecoder : public TokenDecoder {
 public:
  explicit SequenceDecoder(std::vector<std::unique_ptr<TokenDecoder>> parts) : parts_(std::move(parts)) {}
  void apply(std::vector<std::string>& pieces) const override {
    for (const auto& part : parts_) part->apply(pieces);
  }

 private:
  std::vector<std::unique_ptr<TokenDecoder>> parts_;
};

}  // namespace

std::unique_ptr<TokenDecoder> make_byte_level_decoder() { return std::make_unique<ByteLevelDecoder>(); }
std::unique_ptr<TokenDecoder> make_sentencepiece_decoder(bool strip_first) {
  return std::make_unique<SentencePieceDecoder>(strip_first);
}
std::unique_ptr<TokenDecoder> make_phantom_space_decoder() { return std::make_unique<PhantomSpaceDecoder>(); }

std::unique_ptr<TokenDecoder> parse_decoder(const Json& json, std::string_view where, int depth) {
  if (json.is_null()) return nullptr;
  if (depth > kMaxNesting)
    throw_error(ErrorKind::kUnsupported, "{}: nested deeper than {}", where, kMaxNesting);
  const std::string& type = type_field(json, where);
  if (type == "Sequence") {
    std::vector<std::unique_ptr<TokenDecoder>> parts;
    for (const Json& part : required_array(json, "decoders", where)) {
      if (auto parsed = parse_decoder(part, where, depth + 1)) parts.push_back(std::move(parsed));
    }
    return std::make_unique<SequenceDecoder>(std::move(parts));
  }
  if (type == "ByteLevel") return make_byte_level_decoder();
  if (type == "ByteFallback") return std::make_unique<ByteFallbackDecoder>();
  if (type == "Fuse") return std::make_unique<FuseDecoder>();
  if (type == "Replace") {
    return std::make_unique<ReplaceDecoder>(pattern_field(json, "pattern", where),
                                            required_string(json, "content", where),
                                            std::string(where) + ".pattern");
  }
  if (type == "Strip") {
    const std::string& content = required_string(json, "content", where);
    if (content.empty() || utf8_length(content, 0) != content.size()) {
      throw_error(ErrorKind::kInvalidInput, "{}.content: expected one character", where);
    }
    return std::make_unique<StripDecoder>(content, int_field(json, "start", 0, where),
                                          int_field(json, "stop", 0, where));
  }
  if (type == "Metaspace") {
    const bool prefix = bool_field(json, "add_prefix_space", true, where);
    const std::string scheme = string_field(json, "prepend_scheme", prefix ? "always" : "never", where);
    return std::make_unique<MetaspaceDecoder>(string_field(json, "replacement", kSpace, where),
                                              scheme != "never");
  }
  if (type == "WordPiece") {
    return std::make_unique<WordPieceDecoder>(string_field(json, "prefix", "##", where),
                                              bool_field(json, "cleanup", true, where));
  }
  if (type == "CTC") {
    return std::make_unique<CtcDecoder>(string_field(json, "pad_token", "<pad>", where),
                                        string_field(json, "word_delimiter_token", "|", where),
                                        bool_field(json, "cleanup", true, where));
  }
  if (type == "BPEDecoder") return std::make_unique<BpeDecoder>(string_field(json, "suffix", "</w>", where));
  throw_error(ErrorKind::kUnsupported, "{}: decoder {} is not supported", where, quote_text(type));
}

}  // namespace qiao::tokenization
