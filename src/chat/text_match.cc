#include "chat/text_match.h"

#include <algorithm>

#include "base/error.h"
#include "chat/json_text.h"

namespace qiao::chat {

void TextMatch::space() {
  if (!ok()) return;
  while (at_ < text_.size() && is_json_space(text_[at_])) ++at_;
}

void TextMatch::literal(std::string_view text) {
  if (!ok()) return;
  const std::string_view rest = text_.substr(at_);
  if (rest.starts_with(text)) {
    at_ += text.size();
  } else if (text.starts_with(rest)) {
    more();
  } else {
    fail();
  }
}

void TextMatch::marker(std::string_view marker) {
  while (ok() && !marker.empty()) {
    if (is_json_space(marker.front())) {
      space();
      while (!marker.empty() && is_json_space(marker.front())) marker.remove_prefix(1);
    } else {
      const size_t end = std::min(marker.find_first_of(" \n\t\r"), marker.size());
      literal(marker.substr(0, end));
      marker.remove_prefix(end);
    }
  }
}

char TextMatch::peek() {
  if (!ok()) return 0;
  if (at_ < text_.size()) return text_[at_];
  more();
  return 0;
}

std::string TextMatch::word(size_t most) {
  if (!ok()) return {};
  size_t end = at_;
  const auto in_word = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  while (end < text_.size() && in_word(text_[end])) ++end;
  if (end - at_ > most || (end == at_ && end < text_.size())) {
    fail();
    return {};
  }
  if (end == text_.size()) {
    more();
    return {};
  }
  std::string word(text_.substr(at_, end - at_));
  at_ = end;
  return word;
}

std::string_view TextMatch::json_value() {
  if (peek() == 0) return {};
  JsonEnd end;
  const size_t begin = at_;
  at_ += end.take(text_.substr(at_));
  if (!end.done()) {
    more();
    return {};
  }
  return text_.substr(begin, at_ - begin);
}

std::string TextMatch::json_string() {
  if (peek() != '"') {
    if (ok()) fail();
    return {};
  }
  const std::string_view value = json_value();
  if (!ok()) return {};
  try {
    return parse_json(value, "").get<std::string>();
  } catch (const Error&) {
    fail();
    return {};
  }
}

std::string_view TextMatch::until(std::string_view end) {
  if (!ok()) return {};
  const size_t found = text_.find(end, at_);
  if (found == std::string_view::npos) {
    more();
    return {};
  }
  const std::string_view value = text_.substr(at_, found - at_);
  at_ = found + end.size();
  return value;
}

size_t marker_tail(std::string_view text, std::string_view marker) {
  for (size_t size = std::min(text.size(), marker.size()); size > 0; --size) {
    if (marker.starts_with(text.substr(text.size() - size))) return size;
  }
  return 0;
}

}  // namespace qiao::chat
