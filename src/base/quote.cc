#include "base/quote.h"

#include <fmt/format.h>

#include <iterator>

namespace qiao {
namespace {

// Bytes of the well-formed UTF-8 character at the front; 0 where there is none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xf0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xed && byte(1) >= 0xa0;
  const bool too_high = lead == 0xf4 && byte(1) >= 0x90;
  return overlong || surrogate || too_high ? 0 : length;
}

std::string escaped(std::string_view text, size_t max_bytes, bool escape_quotes) {
  std::string out;
  const std::string_view whole = text;
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (whole.size() - text.size() + (length == 0 ? 1 : length) > max_bytes) {
      out += "…";
      break;
    }
    const auto byte = static_cast<unsigned char>(text[0]);
    // C1 controls (U+0080 to U+009F) move a terminal's cursor as the C0 ones do.
    const bool c1 = length == 2 && byte == 0xc2 && static_cast<unsigned char>(text[1]) < 0xa0;
    if (length == 0 || byte < 0x20 || byte == 0x7f || c1) {
      for (size_t i = 0; i < (c1 ? 2 : 1); ++i) {
        fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(text[i]));
      }
      text.remove_prefix(c1 ? 2 : 1);
      continue;
    }
    if (escape_quotes && (byte == '"' || byte == '\\')) out += '\\';
    out += text.substr(0, length);
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) { return escaped(text, max_bytes, false); }

std::string quote_text(std::string_view text, size_t max_bytes) {
  return fmt::format("\"{}\"", escaped(text, max_bytes, true));
}

}  // namespace qiao
