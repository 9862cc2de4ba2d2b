#include "text/normalizer.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/quote.h"
#include "text/byte_alphabet.h"
#include "text/json_fields.h"
#include "text/library_tables.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace qiao::tokenization {
namespace {

template <typename Visit>
void for_each_character(std::string_view text, Visit visit) {
  for (size_t i = 0; i < text.size();) {
    size_t n;
    const char32_t c = utf8_decode(text, i, &n);
    visit(c, text.substr(i, n));
    i += n;
  }
}

// Keeps the characters that `keep` accepts.
template <typename Keep>
void filter(std::string& text, Keep keep) {
  std::string out;
  out.reserve(text.size());
  for_each_character(text, [&](char32_t c, std::string_view bytes) {
    if (keep(c)) out += bytes;
  });
  text = std::move(out);
}

class FormNormalizer : public Normalizer {
 public:
  explicit FormNormalizer(NormalizationForm form) : form_(form) {}
  void apply(std::string& text, const InvalidBytes&) const override { text = normalize(text, form_); }

 private:
  NormalizationForm form_;
};

class LowercaseNormalizer : public Normalizer {
 public:
  void apply(std::string& text, const InvalidBytes&) const override { text = lowercase(text); }
};

class StripNormalizer : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  void apply(std::string& text, const InvalidBytes&) const override {
    size_t begin = text.size();
    size_t end = 0;
    size_t at = 0;
    for_each_character(text, [&](char32_t c, std::string_view bytes) {
      if (!is_space(c)) {
        begin = std::min(begin, at);
        end = at + bytes.size();
      }
      at += bytes.size();
    });
    if (!left_) begin = 0;
    if (!right_) end = text.size();
    text = begin < end ? text.substr(begin, end - begin) : std::string();
  }

 private:
  bool left_;
  bool right_;
};

class StripAccentsNormalizer : public Normalizer {
 public:
  void apply(std::string& text, const InvalidBytes&) const override {
    filter(text, [](char32_t c) { return !is_library_mark(c); });
  }
};

class ReplaceNormalizer : public Normalizer {
 public:
  ReplaceNormalizer(PatternText pattern, std::string content, std::string_view where)
      : pattern_(std::move(pattern)), content_(std::move(content)) {
    if (pattern_.is_regex) regex_ = std::make_unique<Regex>(pattern_.text, where);
  }
  void apply(std::string& text, const InvalidBytes&) const override {
    std::string out;
    size_t at = 0;
    const auto take = [&](size_t begin, size_t end) {
      out.append(text, at, begin - at).append(content_);
      at = end;
    };
    if (regex_ != nullptr) {
      std::vector<Match> matches;
      regex_->find_all(text, matches);
      for (const Match& match : matches) take(match.begin, match.end);
    } else if (!pattern_.text.empty()) {
      size_t begin;
      while ((begin = text.find(pattern_.text, at)) != std::string::npos)
        take(begin, begin + pattern_.text.size());
    }
    if (at == 0 && out.empty()) return;
    out.append(text, at);
    text = std::move(out);
  }

 private:
  PatternText pattern_;
  std::string content_;
  std::unique_ptr<Regex> regex_;
};

class PrependNormalizer : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(std::string& text, const InvalidBytes&) const override {
    if (!text.empty()) text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class NmtNormalizer : public Normalizer {
 public:
  void apply(std::string& text, const InvalidBytes&) const override {
    std::string out;
    for_each_character(text, [&](char32_t c, std::string_view bytes) {
      const bool dropped =
          (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
      const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 ||
                         (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                         c == 0xFEFF || c == 0xFFFD;
      if (space) {
        out.push_back(' ');
      } else if (!dropped) {
        out += bytes;
      }
    });
    text = std::move(out);
  }
};

class ByteLevelNormalizer : public Normalizer {
 public:
  void apply(std::string& text, const InvalidBytes& invalid) const override {
    std::string out;
    append_byte_alphabet(text, invalid, out);
    text = std::move(out);
  }
  bool writes_byte_alphabet() const override { return true; }
};

// The tokenizers library looks up grapheme clusters shorter than six bytes as a whole (by the shortest entry
// that they start with), and characters elsewhere.
class PrecompiledNormalizer : public Normalizer {
 public:
  explicit PrecompiledNormalizer(std::unique_ptr<Charsmap> charsmap) : charsmap_(std::move(charsmap)) {}
  void apply(std::string& text, const InvalidBytes&) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
      const size_t end = grapheme_end(text, at);
      const std::string_view cluster = std::string_view(text).substr(at, end - at);
      at = end;
      if (cluster.size() < 6) {
        if (const Charsmap::Found found = charsmap_->shortest(cluster); found.length > 0) {
          out += found.replacement;
          continue;
        }
      }
      for_each_character(cluster, [&](char32_t, std::string_view character) {
        const Charsmap::Found found = charsmap_->shortest(character);
        out += found.length > 0 ? found.replacement : character;
      });
    }
    // The blob is outside data: what it writes need not be UTF-8.
    text = utf8_valid(out) ? std::move(out) : utf8_replace_invalid(out);
  }

 private:
  std::unique_ptr<Charsmap> charsmap_;
};

class BertNormalizer : public Normalizer {
 public:
  explicit BertNormalizer(const BertOptions& options) : options_(options) {}
  void apply(std::string& text, const InvalidBytes&) const override {
    if (options_.clean_text || options_.handle_chinese_characters) {
      std::string out;
      out.reserve(text.size());
      for_each_character(text, [&](char32_t c, std::string_view bytes) {
        if (options_.clean_text) {
          if (c == 0 || c == kReplacement || is_library_control(c)) return;
          if (is_space(c)) {
            out.push_back(' ');
            return;
          }
        }
        if (options_.handle_chinese_characters && is_chinese(c)) {
          out.append(" ").append(bytes).append(" ");
        } else {
          out += bytes;
        }
      });
      text = std::move(out);
    }
    if (options_.strip_accents) {
      text = normalize(text, NormalizationForm::kNfd);
      filter(text, [](char32_t c) { return !is_library_nonspacing_mark(c); });
    }
    if (options_.lowercase) text = lowercase(text);
  }

 private:
  static bool is_chinese(char32_t c) {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
           (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) ||
           (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
  }
  BertOptions options_;
};

class SentencePieceNormalizer : public Normalizer {
 public:
  explicit SentencePieceNormalizer(SentencePieceOptions options) : options_(std::move(options)) {}
  void apply(std::string& text, const InvalidBytes&) const override {
    const std::string_view space = options_.escape_spaces ? "\xE2\x96\x81" : " ";
    std::string out;
    out.reserve(text.size() + text.size() / 4 + 8);
    const std::string_view in = text;
    bool something = false;  // a character other than a space was written
    bool pending = false;    // spaces seen since, to be written as one
    for (size_t at = 0; at < in.size();) {
      size_t consumed = 0;
      const std::string_view piece = next(in.substr(at), &consumed);
      at += consumed;
      for (const char c : piece) {
        if (c != ' ') {
          if (!something && options_.add_space_prefix && !options_.space_as_suffix && out.empty())
            out += space;
          if (pending && something) out += space;
          pending = false;
          something = true;
          out.push_back(c);
        } else if (options_.remove_extra_spaces) {
          pending = true;
        } else {
          if (!something && options_.add_space_prefix && !options_.space_as_suffix && out.empty())
            out += space;
          out += space;
          something = true;
        }
      }
    }
    // Also a "▁" of the text itself.
    std::string_view kept = out;
    while (options_.remove_extra_spaces && kept.ends_with(space)) kept.remove_suffix(space.size());
    out = std::string(kept);
    if (options_.space_as_suffix && options_.add_space_prefix && !out.empty()) out += space;
    text = utf8_valid(out) ? std::move(out) : utf8_replace_invalid(out);
  }

 private:
  // What the start of `text` becomes, and how much of it.
  std::string_view next(std::string_view text, size_t* consumed) const {
    TokenId id;
    if (const size_t n = options_.user_defined.longest_prefix(text, &id); n > 0) {
      *consumed = n;
      return text.substr(0, n);
    }
    if (options_.charsmap != nullptr) {
      if (const Charsmap::Found found = options_.charsmap->longest(text); found.length > 0) {
        *consumed = found.length;
        return found.replacement;
      }
    }
    *consumed = std::max<size_t>(utf8_length(text, 0), 1);
    return text.substr(0, *consumed);
  }
  SentencePieceOptions options_;
};

class SequenceNormalizer : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  void apply(std::string& text, const InvalidBytes& invalid) const override {
    for (const auto& part : parts_) part->apply(text, invalid);
  }
  bool writes_byte_alphabet() const override {
    return std::any_of(parts_.begin(), parts_.end(),
                       [](const auto& part) { return part->writes_byte_alphabet(); });
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

}  // namespace

std::unique_ptr<Normalizer> make_replace(std::string from, std::string to) {
  return std::make_unique<ReplaceNormalizer>(PatternText{std::move(from), false}, std::move(to), "");
}

std::unique_ptr<Normalizer> make_prepend(std::string text) {
  return std::make_unique<PrependNormalizer>(std::move(text));
}

std::unique_ptr<Normalizer> make_bert_normalizer(const BertOptions& options) {
  return std::make_unique<BertNormalizer>(options);
}

std::unique_ptr<Normalizer> make_sentencepiece_normalizer(SentencePieceOptions options) {
  return std::make_unique<SentencePieceNormalizer>(std::move(options));
}

std::string decode_base64(std::string_view text, std::string_view where) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  for (const char c : text) {
    uint32_t value;
    if (c >= 'A' && c <= 'Z') {
      value = static_cast<uint32_t>(c - 'A');
    } else if (c >= 'a' && c <= 'z') {
      value = static_cast<uint32_t>(c - 'a' + 26);
    } else if (c >= '0' && c <= '9') {
      value = static_cast<uint32_t>(c - '0' + 52);
    } else if (c == '+' || c == '/') {
      value = c == '+' ? 62 : 63;
    } else {
      throw_error(ErrorKind::kInvalidInput, "{}: not base64", where);
    }
    bits = (bits << 6) | value;
    if (++count == 4) {
      out.push_back(static_cast<char>(bits >> 16));
      out.push_back(static_cast<char>(bits >> 8));
      out.push_back(static_cast<char>(bits));
      bits = 0;
      count = 0;
    }
  }
  if (count == 1) throw_error(ErrorKind::kInvalidInput, "{}: base64 is cut short", where);
  if (count == 2) out.push_back(static_cast<char>(bits >> 4));
  if (count == 3) {
    out.push_back(static_cast<char>(bits >> 10));
    out.push_back(static_cast<char>(bits >> 2));
  }
  return out;
}

std::unique_ptr<Normalizer> parse_normalizer(const Json& json, std::string_view where, int depth) {
  if (json.is_null()) return nullptr;
  if (depth > kMaxNesting)
    throw_error(ErrorKind::kUnsupported, "{}: nested deeper than {}", where, kMaxNesting);
  const std::string& type = type_field(json, where);
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> parts;
    for (const Json& part : required_array(json, "normalizers", where)) {
      if (auto normalizer = parse_normalizer(part, where, depth + 1)) parts.push_back(std::move(normalizer));
    }
    return std::make_unique<SequenceNormalizer>(std::move(parts));
  }
  if (type == "NFC") return std::make_unique<FormNormalizer>(NormalizationForm::kNfc);
  if (type == "NFD") return std::make_unique<FormNormalizer>(NormalizationForm::kNfd);
  if (type == "NFKC") return std::make_unique<FormNormalizer>(NormalizationForm::kNfkc);
  if (type == "NFKD") return std::make_unique<FormNormalizer>(NormalizationForm::kNfkd);
  if (type == "Lowercase") return std::make_unique<LowercaseNormalizer>();
  if (type == "StripAccents") return std::make_unique<StripAccentsNormalizer>();
  if (type == "Nmt") return std::make_unique<NmtNormalizer>();
  if (type == "ByteLevel") return std::make_unique<ByteLevelNormalizer>();
  if (type == "Strip" || type == "StripNormalizer") {
    return std::make_unique<StripNormalizer>(bool_field(json, "strip_left", true, where),
                                             bool_field(json, "strip_right", true, where));
  }
  if (type == "Prepend") return make_prepend(required_string(json, "prepend", where));
  if (type == "Replace") {
    return std::make_unique<ReplaceNormalizer>(pattern_field(json, "pattern", where),
                                               required_string(json, "content", where),
                                               std::string(where) + ".pattern");
  }
  if (type == "BertNormalizer") {
    BertOptions options;
    options.clean_text = bool_field(json, "clean_text", true, where);
    options.handle_chinese_characters = bool_field(json, "handle_chinese_chars", true, where);
    options.lowercase = bool_field(json, "lowercase", true, where);
    options.strip_accents = bool_field(json, "strip_accents", options.lowercase, where);
    return make_bert_normalizer(options);
  }
  if (type == "Precompiled") {
    const std::string blob = decode_base64(string_field(json, "precompiled_charsmap", "", where), where);
    if (blob.empty()) return nullptr;
    return std::make_unique<PrecompiledNormalizer>(std::make_unique<Charsmap>(blob, where));
  }
  throw_error(ErrorKind::kUnsupported, "{}: normalizer {} is not supported", where, quote_text(type));
}

}  // namespace qiao::tokenization
