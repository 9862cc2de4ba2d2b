#include "text/tokenizer.h"
#include "text/utf8.h"

namespace qiao {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::push(TokenId id) {
  if (skip_special_ && tokenizer_.is_control(id)) return {};
  held_ += first_ ? tokenizer_.decode(std::span(&id, 1), skip_special_) : tokenizer_.token_bytes(id);
  first_ = false;
  const size_t tail = tokenization::utf8_unfinished_tail(held_);
  std::string text =
      tokenization::utf8_replace_invalid(std::string_view(held_).substr(0, held_.size() - tail));
  held_.erase(0, held_.size() - tail);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text = tokenization::utf8_replace_invalid(held_);
  held_.clear();
  return text;
}

}  // namespace qiao
