// UTF-8 for the tokenizers: decoding that cannot read past the end, and a lossless way to carry broken bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace qiao::tokenization {

inline constexpr char32_t kReplacement = 0xFFFD;

// Length in bytes of the well-formed character at text[at], or 0 where there is none (RFC 3629: no
// surrogates, no overlong forms, nothing over U+10FFFF).
size_t utf8_length(std::string_view text, size_t at);

// The character at text[at] and its length. Broken bytes give U+FFFD and length 1. Requires at < text.size().
char32_t utf8_decode(std::string_view text, size_t at, size_t* length);
void utf8_append(std::string& out, char32_t code_point);

bool utf8_valid(std::string_view text);

// How many bytes at the end of `text` start a character that more bytes could still complete (0 to 3).
size_t utf8_unfinished_tail(std::string_view text);

// `text` with every maximal broken part as U+FFFD, as Python's errors="replace" does.
std::string utf8_replace_invalid(std::string_view text);

// Broken bytes ride through normalizers and patterns as characters of a private-use range that the text
// itself does not use: `base` + (byte - 0x80). base 0: the text is well-formed, no character stands for a
// byte.
struct InvalidBytes {
  char32_t base = 0;
  bool is(char32_t c) const { return base != 0 && c >= base && c < base + 0x80; }
  char byte(char32_t c) const { return static_cast<char>(0x80 + (c - base)); }
};

// `text` with its broken bytes carried, and which range carries them. (A text that uses all 1,000 private
// ranges gets U+FFFD instead.)
std::string carry_invalid_bytes(std::string_view text, InvalidBytes* invalid);

}  // namespace qiao::tokenization
