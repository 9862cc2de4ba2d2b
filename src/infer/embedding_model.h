// An encoder ready to be asked: files, tokenizer, encoder, what makes a vector of its hidden states, and the
// chip it runs on.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "infer/language_model.h"
#include "models/encoder.h"
#include "models/pooling.h"
#include "text/pair_frame.h"

namespace qiao {

// One sequence for the encoder, its special tokens included.
struct EncoderInput {
  std::vector<TokenId> tokens;
  std::vector<int32_t> types;  // as tokens, or empty: all 0
};

// Immutable after loading, but for the backend, which one engine at a time uses, and for drop_chip and
// load_chip.
class EmbeddingModel {
 public:
  // Whether the model at `path` is an encoder.
  static bool is_at(const std::filesystem::path& path);
  static std::shared_ptr<EmbeddingModel> load(const std::filesystem::path& path,
                                              const LanguageModelOptions& options);

  const std::filesystem::path& path() const { return path_; }
  const std::string& name() const { return name_; }
  Backend& backend() const { return *backend_; }
  const Encoder& encoder() const { return *encoder_; }
  const EncoderConfig& config() const { return config_; }  // the encoder's; stays where the chip is dropped
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const PoolingHead& pooling() const { return pooling_; }
  int64_t max_tokens() const { return pooling_.max_tokens; }
  bool is_cross_encoder() const { return pooling_.scores && pooling_.dimensions == 1; }

  // Special tokens as the model has them. Longer than max_tokens() where the text is.
  EncoderInput encode(std::string_view text) const;
  // At most `max_tokens`, cut before the special tokens at the end.
  void truncate(EncoderInput& input, int64_t max_tokens) const;
  // A text without special tokens, for pairs.
  std::vector<TokenId> encode_plain(std::string_view text) const;
  // Both texts in one sequence of at most `max_tokens`. Throws Error(kUnsupported) where the tokenizer's file
  // does not say how.
  EncoderInput encode_pair(std::vector<TokenId> first, std::vector<TokenId> second, int64_t max_tokens) const;

  // As LanguageModel's.
  void drop_chip();
  void load_chip();

 private:
  EmbeddingModel() = default;
  std::string prepared(std::string_view text) const;  // as the tokenizer is to have it
  std::shared_ptr<ModelFiles> files_;
  LanguageModelOptions options_;
  std::filesystem::path path_;
  std::string name_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Encoder> encoder_;  // before backend_ is destroyed: declared after it
  EncoderConfig config_;
  PoolingHead pooling_;
  std::optional<PairFrame> pair_frame_;
  size_t special_at_end_ = 0;
};

}  // namespace qiao
