#include "text/byte_alphabet.h"

#include <array>

namespace qiao::tokenization {
namespace {

constexpr char32_t kLast = 0x143;

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int16_t, kLast + 1> byte{};
  constexpr Alphabet() {
    for (auto& b : byte) b = -1;
    char32_t next =
        0x100;  // bytes that are not printable in Latin-1 take the characters from U+0100 on, in order
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = printable ? static_cast<char32_t>(b) : next++;
      character[static_cast<size_t>(b)] = c;
      byte[c] = static_cast<int16_t>(b);
    }
  }
};
constexpr Alphabet kAlphabet;

void append_byte(char byte, std::string& out) {
  utf8_append(out, kAlphabet.character[static_cast<unsigned char>(byte)]);
}

}  // namespace

void append_byte_alphabet(std::string_view text, const InvalidBytes& invalid, std::string& out) {
  if (invalid.base == 0) {
    for (const char c : text) append_byte(c, out);
    return;
  }
  for (size_t i = 0; i < text.size();) {
    size_t n;
    const char32_t c = utf8_decode(text, i, &n);
    if (invalid.is(c)) {
      append_byte(invalid.byte(c), out);
    } else {
      for (const char b : text.substr(i, n)) append_byte(b, out);
    }
    i += n;
  }
}

int byte_of_character(char32_t c) { return c <= kLast ? kAlphabet.byte[c] : -1; }

bool append_from_byte_alphabet(std::string_view spelling, std::string& out) {
  const size_t before = out.size();
  for (size_t i = 0; i < spelling.size();) {
    size_t n;
    const int byte = byte_of_character(utf8_decode(spelling, i, &n));
    if (byte < 0) {
      out.resize(before);
      return false;
    }
    out.push_back(static_cast<char>(byte));
    i += n;
  }
  return true;
}

}  // namespace qiao::tokenization
