#include "text/token_model.h"

#include <fmt/format.h>

#include <algorithm>

namespace qiao::tokenization {

ByteTokens::ByteTokens(const Vocabulary& vocabulary) {
  for (int b = 0; b < 256; ++b) ids_[static_cast<size_t>(b)] = vocabulary.find(fmt::format("<0x{:02X}>", b));
  complete_ = std::all_of(ids_.begin(), ids_.end(), [](TokenId id) { return id >= 0; });
}

bool ByteTokens::append(std::string_view character, const InvalidBytes& invalid,
                        std::vector<TokenId>& out) const {
  std::array<char, 1> single;
  if (invalid.base != 0) {
    size_t n;
    const char32_t c = utf8_decode(character, 0, &n);
    if (invalid.is(c)) {
      single[0] = invalid.byte(c);
      character = std::string_view(single.data(), 1);
    }
  }
  for (const char c : character) {
    if (at(static_cast<unsigned char>(c)) < 0) return false;
  }
  for (const char c : character) out.push_back(at(static_cast<unsigned char>(c)));
  return true;
}

int byte_of_token(std::string_view s) {
  if (s.size() != 6 || !s.starts_with("<0x") || s[5] != '>') return -1;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  const int high = digit(s[3]);
  const int low = digit(s[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace qiao::tokenization
