// Text to token ids and back. Kinds: byte-level BPE, SentencePiece BPE and unigram (byte fallback),
// WordPiece.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "formats/gguf.h"

namespace qiao {

class ModelFiles;

using TokenId = int32_t;

struct EncodeOptions {
  bool add_special = false;   // BOS/EOS/[CLS]… as the model's own settings say
  bool parse_special = true;  // "<|im_end|>" in the text is that token; false: ordinary text
};

// Immutable after construction; every method is safe from any thread.
class Tokenizer {
 public:
  // From GGUF metadata (tokenizer.ggml.*; the file may hold no tensors), or from a Hugging Face directory's
  // tokenizer.json and tokenizer_config.json (null where absent). Throws Error(kInvalidInput / kUnsupported)
  // naming file and field. All sizes, ids, merges and patterns are checked here.
  static std::unique_ptr<Tokenizer> from_gguf(const GgufMetadata& metadata);
  static std::unique_ptr<Tokenizer> from_json(const Json& tokenizer_json, const Json& tokenizer_config,
                                              std::string_view source);
  // Whichever of the two the model has. Throws Error(kNotFound) for a directory without tokenizer.json.
  static std::unique_ptr<Tokenizer> from_model(const ModelFiles& files);
  virtual ~Tokenizer() = default;

  // Linear in text.size(). Broken UTF-8 is encoded as the peer library does for the same bytes (U+FFFD, or
  // bytes).
  virtual std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const = 0;
  // skip_special leaves control tokens out. Bytes as they come: may end inside a UTF-8 character.
  virtual std::string decode(std::span<const TokenId> ids, bool skip_special = true) const = 0;

  virtual int64_t vocabulary_size() const = 0;
  // Throws Error(kInvalidInput) naming `source` where a model of `vocabulary` tokens lacks one of these.
  // Special tokens may lie beyond it (Gemma 3 1B's image token does): a prompt that holds one is refused when
  // it comes.
  void require_fit(int64_t vocabulary, std::string_view source) const;
  // The token's text as bytes (what it adds inside a text), e.g. " the"; "<|im_end|>" for a control token.
  virtual std::string token_bytes(TokenId id) const = 0;
  virtual std::optional<TokenId> find_token(
      std::string_view text) const = 0;  // its spelling in the vocabulary
  virtual bool is_control(TokenId id) const = 0;
  virtual std::optional<TokenId> bos() const = 0;
  virtual std::optional<TokenId> eos() const = 0;
  virtual std::optional<TokenId> pad() const = 0;
  // Every token at which generation stops: EOS, EOT and the kinds that the files name (generation_config adds
  // more).
  virtual const std::vector<TokenId>& end_of_generation() const = 0;
  virtual bool adds_bos() const = 0;
  virtual std::string kind() const = 0;  // "byte-level BPE (qwen2)", for inspect
};

// Turns a stream of ids into text that never ends inside a UTF-8 character: bytes of an unfinished one are
// held back.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  // The text that this token completes; often empty in the middle of an emoji. Broken sequences become
  // U+FFFD.
  std::string push(TokenId id);
  // What is still held back, as U+FFFD where unfinished.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  bool first_ = true;
  std::string held_;
};

}  // namespace qiao
