#include "chat/json_text.h"

#include <fmt/format.h>

#include <utility>

namespace qiao::chat {

std::string dump_spaced(const Json& value) {
  std::string out;
  if (value.is_object()) {
    out = "{";
    bool first = true;
    for (const auto& [key, entry] : value.items()) {
      if (!std::exchange(first, false)) out += ", ";
      out += dump_json(Json(key)) + ": " + dump_spaced(entry);
    }
    return out + "}";
  }
  if (value.is_array()) {
    out = "[";
    bool first = true;
    for (const Json& entry : value) {
      if (!std::exchange(first, false)) out += ", ";
      out += dump_spaced(entry);
    }
    return out + "]";
  }
  return dump_json(value);
}

std::string escape_json(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  return out;
}

size_t JsonEnd::take(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size() && !done_) {
    const char c = bytes[i];
    if (in_string_) {
      ++i;
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
        done_ = depth_ == 0;
      }
      continue;
    }
    if (scalar_ && depth_ == 0 && (is_json_space(c) || c == ',' || c == '}' || c == ']')) {
      done_ = true;  // a number or word ends where something else begins, which is not its own
      break;
    }
    ++i;
    if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (c == '}' || c == ']') {
      --depth_;
      done_ = depth_ <= 0;
    } else {
      scalar_ = true;
    }
  }
  return i;
}

}  // namespace qiao::chat
