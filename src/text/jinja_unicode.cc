#include "text/jinja_unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "text/jinja_unicode_tables.h"

namespace qiao::jinja {
namespace {

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

template <size_t N>
bool in_ranges(const char32_t (&ranges)[N][2], char32_t c) {
  for (const auto& range : ranges) {
    if (c >= range[0] && c <= range[1]) return true;
  }
  return false;
}

template <size_t N>
const LongCase* find_long(const LongCase (&table)[N], char32_t c) {
  const auto* found =
      std::lower_bound(std::begin(table), std::end(table), c,
                       [](const LongCase& entry, char32_t value) { return entry.from < value; });
  return found != std::end(table) && found->from == c ? found : nullptr;
}

void append_long(std::vector<char32_t>& out, const LongCase& entry) {
  for (const char32_t c : entry.to) {
    if (c != 0) out.push_back(c);
  }
}

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool is_cased(char32_t c) { return is_lower(c) || is_upper(c) || category(c) == UTF8PROC_CATEGORY_LT; }

// Unicode's Case_Ignorable, which the rule of the final sigma skips.
bool is_case_ignorable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x387 || c == 0x55F || c == 0x5F4 ||
             c == 0x2018 || c == 0x2019 || c == 0x2024 || c == 0x2027 || c == 0xFE13 || c == 0xFE52 ||
             c == 0xFE55 || c == 0xFF07 || c == 0xFF0E || c == 0xFF1A;
  }
}

bool is_final_sigma(const std::vector<char32_t>& text, size_t at) {
  size_t before = at;
  while (before > 0 && is_case_ignorable(text[before - 1])) --before;
  if (before == 0 || !is_cased(text[before - 1])) return false;
  size_t after = at + 1;
  while (after < text.size() && is_case_ignorable(text[after])) ++after;
  return after == text.size() || !is_cased(text[after]);
}

void append_lower(std::vector<char32_t>& out, const std::vector<char32_t>& text, size_t at) {
  const char32_t c = text[at];
  if (c == 0x3A3) {
    out.push_back(is_final_sigma(text, at) ? 0x3C2 : 0x3C3);
  } else if (c == 0x130) {
    out.push_back('i');
    out.push_back(0x307);
  } else {
    out.push_back(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

void append_upper(std::vector<char32_t>& out, char32_t c) {
  if (const LongCase* entry = find_long(kLongUpper, c)) {
    append_long(out, *entry);
  } else {
    out.push_back(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
  }
}

void append_title(std::vector<char32_t>& out, char32_t c) {
  if (const LongCase* entry = find_long(kLongTitle, c)) {
    append_long(out, *entry);
  } else {
    out.push_back(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
  }
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

}  // namespace

size_t utf8_length(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += !is_continuation(c);
  return count;
}

size_t utf8_offset(std::string_view text, size_t index, size_t from) {
  size_t at = from;
  for (; index > 0 && at < text.size(); --index) {
    ++at;
    while (at < text.size() && is_continuation(text[at])) ++at;
  }
  return at;
}

char32_t utf8_next(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(i < text.size() ? text[i] : 0); };
  const unsigned char lead = byte(at);
  if (lead < 0x80) {
    ++at;
    return lead;
  }
  char32_t c = 0;
  if (lead < 0xE0) {
    c = (lead & 0x1Fu) << 6 | (byte(at + 1) & 0x3Fu);
    at += 2;
  } else if (lead < 0xF0) {
    c = (lead & 0x0Fu) << 12 | (byte(at + 1) & 0x3Fu) << 6 | (byte(at + 2) & 0x3Fu);
    at += 3;
  } else {
    c = (lead & 0x07u) << 18 | (byte(at + 1) & 0x3Fu) << 12 | (byte(at + 2) & 0x3Fu) << 6 |
        (byte(at + 3) & 0x3Fu);
    at += 4;
  }
  return c;
}

char32_t utf8_previous(std::string_view text, size_t& at) {
  --at;
  while (at > 0 && is_continuation(text[at])) --at;
  size_t copy = at;
  return utf8_next(text, copy);
}

void append_utf8(std::string& out, char32_t c) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

size_t find_broken_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    utf8proc_int32_t c = 0;
    const auto left = static_cast<utf8proc_ssize_t>(std::min<size_t>(4, text.size() - at));
    const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at), left, &c);
    if (size <= 0) return at;
    at += static_cast<size_t>(size);
  }
  return std::string_view::npos;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  while (true) {
    const size_t broken = find_broken_utf8(text);
    out.append(text.substr(0, broken));
    if (broken == std::string_view::npos) return out;
    append_utf8(out, 0xFFFD);
    text.remove_prefix(broken + 1);
  }
}

std::vector<char32_t> to_code_points(std::string_view text) {
  std::vector<char32_t> out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) out.push_back(utf8_next(text, at));
  return out;
}

std::string to_utf8(const std::vector<char32_t>& text) {
  std::string out;
  out.reserve(text.size());
  for (const char32_t c : text) append_utf8(out, c);
  return out;
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_line_break(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool is_alpha(char32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t c) { return c < 0x80 ? c >= '0' && c <= '9' : category(c) == UTF8PROC_CATEGORY_ND; }
bool is_digit(char32_t c) { return is_decimal(c) || (c >= 0x80 && in_ranges(kOtherDigits, c)); }

bool is_numeric(char32_t c) {
  if (is_digit(c)) return true;
  const auto kind = category(c);
  if (kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO) return true;
  // Han numerals are letters by category.
  return std::u32string_view(
             U"㐅㒃㠪㭍一七万三九二五亖亿什仟仨伍佰億兆兩八六十千卄卅卌叁参參叄四壱壹幺廾廿弌弍弎弐拾捌柒漆玖"
             U"百"
             U"肆萬貮貳贰阡陆陌陸零")
             .find(c) != std::u32string_view::npos;
}

bool is_lower(char32_t c) {
  if (c < 0x80) return c >= 'a' && c <= 'z';
  return category(c) == UTF8PROC_CATEGORY_LL || in_ranges(kOtherLowercase, c);
}

bool is_upper(char32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z';
  return category(c) == UTF8PROC_CATEGORY_LU || in_ranges(kOtherUppercase, c);
}

bool is_title(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }

bool is_printable(char32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7F;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool is_identifier_start(char32_t c) {
  return c == '_' || is_alpha(c) || (c >= 0x80 && category(c) == UTF8PROC_CATEGORY_NL);
}

bool is_identifier_part(char32_t c) {
  if (is_identifier_start(c) || is_decimal(c)) return true;
  if (c < 0x80) return false;
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_MC || kind == UTF8PROC_CATEGORY_PC ||
         c == 0xB7;
}

std::string to_upper(std::string_view text) {
  if (is_ascii(text)) {
    std::string out(text);
    for (char& c : out) {
      if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    }
    return out;
  }
  std::vector<char32_t> out;
  for (const char32_t c : to_code_points(text)) append_upper(out, c);
  return to_utf8(out);
}

std::string to_lower(std::string_view text) {
  if (is_ascii(text)) {
    std::string out(text);
    for (char& c : out) {
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return out;
  }
  const std::vector<char32_t> in = to_code_points(text);
  std::vector<char32_t> out;
  for (size_t i = 0; i < in.size(); ++i) append_lower(out, in, i);
  return to_utf8(out);
}

std::string to_casefold(std::string_view text) {
  if (is_ascii(text)) return to_lower(text);
  std::string out;
  for (const char32_t c : to_code_points(text)) {
    utf8proc_int32_t folded[8];
    int boundary = 0;
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), folded, 8, UTF8PROC_CASEFOLD, &boundary);
    for (int i = 0; i < count && i < 8; ++i) append_utf8(out, static_cast<char32_t>(folded[i]));
  }
  return out;
}

std::string to_title(std::string_view text) {
  const std::vector<char32_t> in = to_code_points(text);
  std::vector<char32_t> out;
  bool in_word = false;
  for (size_t i = 0; i < in.size(); ++i) {
    if (in_word) {
      append_lower(out, in, i);
    } else {
      append_title(out, in[i]);
    }
    in_word = is_cased(in[i]);
  }
  return to_utf8(out);
}

std::string to_capitalized(std::string_view text) {
  const std::vector<char32_t> in = to_code_points(text);
  std::vector<char32_t> out;
  for (size_t i = 0; i < in.size(); ++i) {
    if (i == 0) {
      append_title(out, in[i]);
    } else {
      append_lower(out, in, i);
    }
  }
  return to_utf8(out);
}

std::string to_swapped_case(std::string_view text) {
  const std::vector<char32_t> in = to_code_points(text);
  std::vector<char32_t> out;
  for (size_t i = 0; i < in.size(); ++i) {
    if (is_upper(in[i])) {
      append_lower(out, in, i);
    } else if (is_lower(in[i])) {
      append_upper(out, in[i]);
    } else {
      out.push_back(in[i]);
    }
  }
  return to_utf8(out);
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = utf8_next(text, at);
    if (!is_line_break(c)) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back(text.substr(start, (keep_ends ? at : end) - start));
    start = at;
  }
  if (start < text.size()) lines.push_back(text.substr(start));
  return lines;
}

std::string_view strip(std::string_view text, bool left, bool right, const std::string_view* characters) {
  std::vector<char32_t> set;
  if (characters) set = to_code_points(*characters);
  const auto goes = [&](char32_t c) {
    return characters ? std::find(set.begin(), set.end(), c) != set.end() : is_space(c);
  };
  size_t begin = 0;
  size_t end = text.size();
  while (left && begin < end) {
    size_t at = begin;
    if (!goes(utf8_next(text, at))) break;
    begin = at;
  }
  while (right && end > begin) {
    size_t at = end;
    if (!goes(utf8_previous(text, at))) break;
    end = at;
  }
  return text.substr(begin, end - begin);
}

}  // namespace qiao::jinja
