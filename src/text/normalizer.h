// What is done to a text before it is split: Unicode forms, case, replacements; from tokenizer.json or by
// name.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/charsmap.h"
#include "text/trie.h"
#include "text/utf8.h"

namespace qiao::tokenization {

// Immutable; apply is safe from any thread and linear in text.size(). Text stays well-formed UTF-8.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(std::string& text, const InvalidBytes& invalid) const = 0;
  virtual bool writes_byte_alphabet() const { return false; }
};

// The "normalizer" of tokenizer.json; nullptr for null. Throws Error(kInvalidInput / kUnsupported) naming
// `where`.
std::unique_ptr<Normalizer> parse_normalizer(const Json& json, std::string_view where, int depth = 0);

std::unique_ptr<Normalizer> make_replace(std::string from, std::string to);
std::unique_ptr<Normalizer> make_prepend(std::string text);

struct BertOptions {
  bool clean_text = true;
  bool handle_chinese_characters = true;
  bool strip_accents = true;
  bool lowercase = true;
};
std::unique_ptr<Normalizer> make_bert_normalizer(const BertOptions& options);

// SentencePiece's own normalizer, as GGUF's "t5" vocabularies name its settings.
struct SentencePieceOptions {
  std::unique_ptr<Charsmap> charsmap;  // may be null
  Trie user_defined;                   // pieces that stay as they are
  bool add_space_prefix = true;
  bool space_as_suffix = false;  // the dummy space goes behind the text
  bool remove_extra_spaces = true;
  bool escape_spaces = true;  // " " becomes "▁"
};
std::unique_ptr<Normalizer> make_sentencepiece_normalizer(SentencePieceOptions options);

// base64 with padding. Throws Error(kInvalidInput) naming `where`.
std::string decode_base64(std::string_view text, std::string_view where);

}  // namespace qiao::tokenization
