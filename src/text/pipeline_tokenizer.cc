#include "text/pipeline_tokenizer.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::tokenization {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 29;  // ranges are 32-bit, and the byte alphabet doubles a text

// Remembers where in the output an earlier, equal word of the same text was encoded: words repeat a lot.
class RecentWords {
 public:
  // The ids of `word` if it came before, as a range of the output.
  bool find(std::string_view word, size_t* begin, size_t* count) const {
    const Entry& entry = entries_[hash_bytes(word) % kSize];
    if (entry.word != word) return false;
    *begin = entry.begin;
    *count = entry.count;
    return true;
  }
  void remember(std::string_view word, size_t begin, size_t count) {
    entries_[hash_bytes(word) % kSize] = {word, static_cast<uint32_t>(begin), static_cast<uint32_t>(count)};
  }

 private:
  static constexpr size_t kSize = 4096;
  struct Entry {
    std::string_view word;
    uint32_t begin = 0;
    uint32_t count = 0;
  };
  std::vector<Entry> entries_ = std::vector<Entry>(kSize);
};

constexpr size_t kWordsWorthRemembering = 256;
constexpr size_t kLongestRemembered = 64;

}  // namespace

PipelineTokenizer::PipelineTokenizer(PipelineParts parts) : parts_(std::move(parts)) {
  for (const AddedToken& token : parts_.added) {
    if (!token.normalized) {
      raw_added_.add(token, token.content, parts_.source);
      continue;
    }
    std::string spelling = token.content;
    if (parts_.normalizer != nullptr) parts_.normalizer->apply(spelling, {});
    normalized_added_.add(token, spelling, parts_.source);
    if (spelling != token.content) normalized_spelling_[token.id] = spelling;
  }
  keeps_bytes_ = parts_.model->keeps_bytes() ||
                 (parts_.normalizer != nullptr && parts_.normalizer->writes_byte_alphabet()) ||
                 (parts_.pre_tokenizer != nullptr && parts_.pre_tokenizer->writes_byte_alphabet());
}

std::vector<TokenId> PipelineTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    throw_error(ErrorKind::kTooLarge, "text of {} bytes is over the tokenizer's limit of {}", text.size(),
                kMaxTextBytes);
  }
  std::vector<TokenId> out;
  if (options.add_special) out = parts_.frame.before;
  InvalidBytes invalid;
  std::string repaired;
  if (!utf8_valid(text)) {
    repaired = keeps_bytes_ ? carry_invalid_bytes(text, &invalid) : utf8_replace_invalid(text);
    text = repaired;
  }
  const char* start = text.data();
  raw_added_.split(text, options.parse_special, [&](std::string_view piece, const AddedToken* token) {
    if (token != nullptr) {
      out.push_back(token->id);
    } else {
      encode_segment(piece, piece.data() == start, invalid, options.parse_special, out);
    }
  });
  if (options.add_special) out.insert(out.end(), parts_.frame.after.begin(), parts_.frame.after.end());
  return out;
}

void PipelineTokenizer::encode_segment(std::string_view segment, bool at_start, const InvalidBytes& invalid,
                                       bool parse_special, std::vector<TokenId>& out) const {
  std::string text(segment);
  if (parts_.normalizer != nullptr) parts_.normalizer->apply(text, invalid);
  if (normalized_added_.empty()) {
    encode_normalized(std::move(text), at_start, invalid, out);
    return;
  }
  normalized_added_.split(text, parse_special, [&](std::string_view piece, const AddedToken* token) {
    if (token != nullptr) {
      out.push_back(token->id);
    } else {
      encode_normalized(std::string(piece), at_start && piece.data() == text.data(), invalid, out);
    }
  });
}

void PipelineTokenizer::encode_normalized(std::string text, bool at_start, const InvalidBytes& invalid,
                                          std::vector<TokenId>& out) const {
  if (text.empty()) return;
  PreTokens tokens;
  tokens.words.push_back({0, static_cast<uint32_t>(text.size()), at_start});
  tokens.text = std::move(text);
  if (parts_.pre_tokenizer != nullptr) parts_.pre_tokenizer->apply(tokens, invalid);
  if (tokens.words.size() < kWordsWorthRemembering) {
    for (const PreTokens::Word& word : tokens.words) parts_.model->encode(tokens.view(word), invalid, out);
    return;
  }
  RecentWords recent;
  for (const PreTokens::Word& word : tokens.words) {
    const std::string_view bytes = tokens.view(word);
    size_t begin, count;
    if (bytes.size() <= kLongestRemembered && recent.find(bytes, &begin, &count)) {
      for (size_t i = 0; i < count; ++i) out.push_back(out[begin + i]);
      continue;
    }
    begin = out.size();
    parts_.model->encode(bytes, invalid, out);
    if (bytes.size() <= kLongestRemembered) recent.remember(bytes, begin, out.size() - begin);
  }
}

std::string_view PipelineTokenizer::shown_spelling(TokenId id) const {
  const auto normalized = normalized_spelling_.find(id);
  return normalized == normalized_spelling_.end() ? parts_.vocabulary->spelling(id)
                                                  : std::string_view(normalized->second);
}

void PipelineTokenizer::decode_pieces(std::vector<std::string>& pieces) const {
  if (parts_.decoder != nullptr) {
    parts_.decoder->apply(pieces);
    return;
  }
  for (size_t i = 1; i < pieces.size(); ++i) pieces[i].insert(pieces[i].begin(), ' ');
}

std::string PipelineTokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  std::vector<std::string> pieces;
  pieces.reserve(ids.size());
  for (const TokenId id : ids) {
    if (!parts_.vocabulary->has(id) || (skip_special && is_control(id))) continue;
    pieces.emplace_back(shown_spelling(id));
  }
  decode_pieces(pieces);
  std::string text;
  for (const std::string& piece : pieces) text += piece;
  return text;
}

std::string PipelineTokenizer::token_bytes(TokenId id) const {
  if (!parts_.vocabulary->has(id)) return {};
  // Inside a text: behind a piece that every decoder leaves as it is.
  std::vector<std::string> pieces = {"x", std::string(shown_spelling(id))};
  decode_pieces(pieces);
  std::string text;
  for (const std::string& piece : pieces) text += piece;
  return text.starts_with('x') ? text.substr(1) : text;
}

std::optional<TokenId> PipelineTokenizer::find_token(std::string_view text) const {
  const TokenId id = parts_.vocabulary->find(text);
  return id < 0 ? std::nullopt : std::optional<TokenId>(id);
}

bool is_end_of_generation_name(std::string_view name) {
  constexpr std::string_view kNames[] = {
      "<|eot_id|>",
      "<|im_end|>",
      "<|end|>",
      "<|return|>",
      "<|call|>",
      "<|flush|>",
      "<|calls|>",
      "<end_of_turn>",
      "<|endoftext|>",
      "</s>",
      "<|eom_id|>",
      "<EOT>",
      "_<EOT>",
      "[EOT]",
      "[EOS]",
      "<|end_of_text|>",
      "<end_of_utterance>",
      "<eos>",
      "<turn|>",
      "<|tool_response>",
      "<｜end▁of▁sentence｜>",
      "[e~[",
  };
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

}  // namespace qiao::tokenization

namespace qiao {

void Tokenizer::require_fit(int64_t vocabulary, std::string_view source) const {
  for (int64_t i = vocabulary; i < vocabulary_size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    if (is_control(id) || token_bytes(id).empty()) continue;
    throw_error(ErrorKind::kInvalidInput, "{}: the tokenizer has {} tokens, the model only {}", source,
                vocabulary_size(), vocabulary);
  }
}

}  // namespace qiao
