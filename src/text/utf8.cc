#include "text/utf8.h"

#include <bitset>

namespace qiao::tokenization {
namespace {

unsigned char at_byte(std::string_view text, size_t i) { return static_cast<unsigned char>(text[i]); }

// Bytes that the lead byte announces, and the allowed range of the second byte; 0 for no lead byte.
size_t announced(unsigned char lead, unsigned char* low, unsigned char* high) {
  *low = 0x80;
  *high = 0xBF;
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) {
    if (lead == 0xE0) *low = 0xA0;
    if (lead == 0xED) *high = 0x9F;
    return 3;
  }
  if (lead > 0xF4) return 0;
  if (lead == 0xF0) *low = 0x90;
  if (lead == 0xF4) *high = 0x8F;
  return 4;
}

// Bytes of text[at…] that fit a well-formed character, and how many that character needs (0: no lead byte).
size_t fitting(std::string_view text, size_t at, size_t* needed) {
  unsigned char low, high;
  *needed = announced(at_byte(text, at), &low, &high);
  if (*needed == 0) return 0;
  size_t n = 1;
  while (n < *needed && at + n < text.size()) {
    const unsigned char c = at_byte(text, at + n);
    if (n == 1 ? (c < low || c > high) : (c & 0xC0) != 0x80) break;
    ++n;
  }
  return n;
}

constexpr char32_t kCarriers = 0xF0000;  // planes 15 and 16: private use
constexpr size_t kCarrierRanges = 1024;

}  // namespace

size_t utf8_length(std::string_view text, size_t at) {
  size_t needed;
  const size_t n = fitting(text, at, &needed);
  return n == needed ? n : 0;
}

char32_t utf8_decode(std::string_view text, size_t at, size_t* length) {
  const unsigned char lead = at_byte(text, at);
  if (lead < 0x80) {
    *length = 1;
    return lead;
  }
  const size_t n = utf8_length(text, at);
  if (n == 0) {
    *length = 1;
    return kReplacement;
  }
  *length = n;
  char32_t c = lead & (0x7F >> n);
  for (size_t i = 1; i < n; ++i) c = (c << 6) | (at_byte(text, at + i) & 0x3F);
  return c;
}

void utf8_append(std::string& out, char32_t c) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | (c >> 6)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | (c >> 12)));
    out.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out.push_back(static_cast<char>(0xF0 | (c >> 18)));
    out.push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

bool utf8_valid(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    if (at_byte(text, i) < 0x80) {
      ++i;
      continue;
    }
    const size_t n = utf8_length(text, i);
    if (n == 0) return false;
    i += n;
  }
  return true;
}

size_t utf8_unfinished_tail(std::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const size_t at = text.size() - back;
    if ((at_byte(text, at) & 0xC0) == 0x80) continue;
    size_t needed;
    const size_t n = fitting(text, at, &needed);
    return n == back && n < needed ? back : 0;
  }
  return 0;
}

std::string utf8_replace_invalid(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    size_t needed;
    const size_t n = fitting(text, i, &needed);
    if (n != 0 && n == needed) {
      out.append(text.substr(i, n));
    } else {
      utf8_append(out, kReplacement);
    }
    i += n == 0 ? 1 : n;
  }
  return out;
}

std::string carry_invalid_bytes(std::string_view text, InvalidBytes* invalid) {
  *invalid = {};
  std::bitset<kCarrierRanges> used;
  bool broken = false;
  for (size_t i = 0; i < text.size();) {
    size_t n;
    const char32_t c = utf8_decode(text, i, &n);
    broken |= c == kReplacement && n == 1;
    if (c >= kCarriers) used.set((c - kCarriers) / 0x80);
    i += n;
  }
  if (!broken) return std::string(text);
  // The last range of a plane ends in noncharacters, which some normalizers drop.
  used.set(kCarrierRanges / 2 - 1).set(kCarrierRanges - 1);
  size_t range = 0;
  while (range < kCarrierRanges && used.test(range)) ++range;
  if (range == kCarrierRanges) return utf8_replace_invalid(text);
  invalid->base = kCarriers + static_cast<char32_t>(range * 0x80);
  std::string out;
  out.reserve(text.size() + 64);
  for (size_t i = 0; i < text.size();) {
    size_t n = utf8_length(text, i);
    if (n != 0) {
      out.append(text.substr(i, n));
    } else {
      utf8_append(out, invalid->base + (at_byte(text, i) - 0x80));
      n = 1;
    }
    i += n;
  }
  return out;
}

}  // namespace qiao::tokenization
