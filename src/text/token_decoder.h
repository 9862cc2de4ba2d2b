// From the spellings of tokens back to text; from tokenizer.json or by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace qiao::tokenization {

// Immutable; apply is safe from any thread. A step rewrites the pieces; the text is what they give joined.
// Pieces are bytes: byte tokens give their byte as it is.
class TokenDecoder {
 public:
  virtual ~TokenDecoder() = default;
  virtual void apply(std::vector<std::string>& pieces) const = 0;
};

// The "decoder" of tokenizer.json; nullptr for null. Throws Error(kInvalidInput / kUnsupported) naming
// `where`.
std::unique_ptr<TokenDecoder> parse_decoder(const Json& json, std::string_view where, int depth = 0);

std::unique_ptr<TokenDecoder> make_byte_level_decoder();
// "▁" as spaces and byte tokens as bytes; `strip_first`: without the space that encoding put before the text.
std::unique_ptr<TokenDecoder> make_sentencepiece_decoder(bool strip_first);
// GGUF's WordPiece: "▁" starts a word; a space before each but the first.
std::unique_ptr<TokenDecoder> make_phantom_space_decoder();

}  // namespace qiao::tokenization
