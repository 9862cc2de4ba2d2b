// Every kind of tokenizer, put together from its parts: added tokens, normalizer, pre-tokenizer, model,
// frame, decoder.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/added_tokens.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"
#include "text/token_decoder.h"
#include "text/token_model.h"
#include "text/tokenizer.h"

namespace qiao::tokenization {

struct PipelineParts {
  std::shared_ptr<const Vocabulary> vocabulary;
  std::vector<AddedToken> added;
  std::unique_ptr<Normalizer> normalizer;       // may be null
  std::unique_ptr<PreTokenizer> pre_tokenizer;  // may be null
  std::unique_ptr<TokenModel> model;
  std::unique_ptr<TokenDecoder> decoder;  // null: spellings joined by spaces, as the tokenizers library does
  SpecialFrame frame;
  std::vector<bool> control;  // by id
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  std::optional<TokenId> pad;
  std::vector<TokenId> end_of_generation;
  std::string kind;
  std::string source;
};

class PipelineTokenizer : public Tokenizer {
 public:
  explicit PipelineTokenizer(PipelineParts parts);

  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options) const override;
  std::string decode(std::span<const TokenId> ids, bool skip_special) const override;
  int64_t vocabulary_size() const override { return parts_.vocabulary->size(); }
  std::string token_bytes(TokenId id) const override;
  std::optional<TokenId> find_token(std::string_view text) const override;
  bool is_control(TokenId id) const override {
    return id >= 0 && static_cast<size_t>(id) < parts_.control.size() &&
           parts_.control[static_cast<size_t>(id)];
  }
  std::optional<TokenId> bos() const override { return parts_.bos; }
  std::optional<TokenId> eos() const override { return parts_.eos; }
  std::optional<TokenId> pad() const override { return parts_.pad; }
  const std::vector<TokenId>& end_of_generation() const override { return parts_.end_of_generation; }
  bool adds_bos() const override {
    return parts_.bos.has_value() && !parts_.frame.before.empty() &&
           parts_.frame.before.front() == *parts_.bos;
  }
  std::string kind() const override { return parts_.kind; }

 private:
  void encode_segment(std::string_view segment, bool at_start, const InvalidBytes& invalid,
                      bool parse_special, std::vector<TokenId>& out) const;
  void encode_normalized(std::string text, bool at_start, const InvalidBytes& invalid,
                         std::vector<TokenId>& out) const;
  std::string_view shown_spelling(TokenId id) const;
  void decode_pieces(std::vector<std::string>& pieces) const;

  PipelineParts parts_;
  AddedTokens raw_added_;         // looked for in the text as it is
  AddedTokens normalized_added_;  // looked for in the normalized text
  std::unordered_map<TokenId, std::string>
      normalized_spelling_;  // of those whose spelling normalization changes
  bool keeps_bytes_;
};

// The names that published models give to tokens that end a turn or a text.
bool is_end_of_generation_name(std::string_view name);

}  // namespace qiao::tokenization
