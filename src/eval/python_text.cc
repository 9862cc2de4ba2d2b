#include "eval/python_text.h"

#include <algorithm>

#include "text/unicode.h"
#include "text/utf8.h"

namespace qiao::eval {

bool is_python_space(char32_t c) { return (c >= 0x1c && c <= 0x1f) || tokenization::is_space(c); }

int64_t count_words(std::string_view text) {
  int64_t words = 1;
  bool in_space = false;
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    const bool space = is_python_space(tokenization::utf8_decode(text, at, &length));
    if (space && !in_space) ++words;
    in_space = space;
  }
  return words;
}

int64_t count_characters(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
}

size_t length_without_trailing_space(std::string_view text) {
  size_t kept = 0;
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    if (!is_python_space(tokenization::utf8_decode(text, at, &length))) kept = at + length;
  }
  return kept;
}

std::string_view strip(std::string_view text) {
  text = text.substr(0, length_without_trailing_space(text));
  size_t length = 0;
  while (!text.empty() && is_python_space(tokenization::utf8_decode(text, 0, &length)))
    text.remove_prefix(length);
  return text;
}

std::string without_punctuation(std::string_view text) {
  std::string kept;
  std::ranges::copy_if(text, std::back_inserter(kept), [](char c) {
    return !tokenization::is_ascii_punctuation(static_cast<unsigned char>(c));
  });
  return kept;
}

}  // namespace qiao::eval
