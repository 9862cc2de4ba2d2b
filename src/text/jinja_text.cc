#include "text/jinja_text.h"

#include <algorithm>

#include "text/jinja_budget.h"
#include "text/jinja_format.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

std::vector<std::string_view> split_spaces_from_right(std::string_view text, int64_t most) {
  std::vector<std::string_view> parts;
  while (true) {
    text = strip(text, false, true);
    if (text.empty()) break;
    if (most >= 0 && static_cast<int64_t>(parts.size()) >= most) {
      parts.push_back(text);
      break;
    }
    size_t begin = text.size();
    while (begin > 0) {
      size_t at = begin;
      if (is_space(utf8_previous(text, at))) break;
      begin = at;
    }
    parts.push_back(text.substr(begin));
    text = text.substr(0, begin);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace

std::vector<std::string_view> split_spaces(std::string_view text, int64_t most, bool from_right) {
  if (from_right) return split_spaces_from_right(text, most);
  std::vector<std::string_view> parts;
  while (true) {
    text = strip(text, true, false);
    if (text.empty()) return parts;
    if (most >= 0 && static_cast<int64_t>(parts.size()) >= most) {
      parts.push_back(text);
      return parts;
    }
    size_t end = 0;
    while (end < text.size()) {
      size_t at = end;
      if (is_space(utf8_next(text, at))) break;
      end = at;
    }
    parts.push_back(text.substr(0, end));
    text = text.substr(end);
  }
}

std::vector<std::string_view> split_text(std::string_view text, std::string_view separator, int64_t most,
                                         bool from_right) {
  std::vector<std::string_view> parts;
  const auto done = [&] { return most >= 0 && static_cast<int64_t>(parts.size()) >= most; };
  while (!done()) {
    const size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(from_right ? text.substr(at + separator.size()) : text.substr(0, at));
    text = from_right ? text.substr(0, at) : text.substr(at + separator.size());
  }
  parts.push_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::string replace_text(std::string_view text, std::string_view from, std::string_view to, int64_t most) {
  step_bytes(text.size());
  std::string out;
  const auto left = [&](int64_t done) { return most < 0 || done < most; };
  int64_t done = 0;
  if (from.empty()) {
    for (size_t at = 0; left(done); ++done) {
      out += to;
      check_string_size(out.size());
      if (at >= text.size()) return out;
      const size_t begin = at;
      utf8_next(text, at);
      out.append(text.substr(begin, at - begin));
      if (!left(done + 1)) return out.append(text.substr(at));
    }
    return out.append(text);
  }
  while (left(done++)) {
    const size_t at = text.find(from);
    if (at == std::string_view::npos) break;
    out.append(text.substr(0, at)).append(to);
    check_string_size(out.size());
    text.remove_prefix(at + from.size());
  }
  return out.append(text);
}

std::string center_text(std::string_view text, int64_t width, char32_t fill) {
  const auto length = static_cast<int64_t>(utf8_length(text));
  if (width <= length) return std::string(text);
  check_repeated_size(4, static_cast<size_t>(width));
  const int64_t total = width - length;
  const int64_t left = total / 2 + (total & width & 1);  // as CPython rounds
  return pad(pad(std::string(text), fill, '>', static_cast<size_t>(length + left)), fill, '<',
             static_cast<size_t>(width));
}

bool every_character(std::string_view text, bool (*is)(char32_t)) {
  for (size_t at = 0; at < text.size();) {
    if (!is(utf8_next(text, at))) return false;
  }
  return true;
}

bool is_all_lower(std::string_view text) {
  bool cased = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = utf8_next(text, at);
    if (is_upper(c) || is_title(c)) return false;
    cased = cased || is_lower(c);
  }
  return cased;
}

bool is_all_upper(std::string_view text) {
  bool cased = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = utf8_next(text, at);
    if (is_lower(c) || is_title(c)) return false;
    cased = cased || is_upper(c);
  }
  return cased;
}

bool is_all_title(std::string_view text) {
  bool cased = false;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = utf8_next(text, at);
    if (is_upper(c) || is_title(c)) {
      if (in_word) return false;
      in_word = cased = true;
    } else if (is_lower(c)) {
      if (!in_word) return false;
      cased = true;
    } else {
      in_word = false;
    }
  }
  return cased;
}

}  // namespace qiao::jinja
