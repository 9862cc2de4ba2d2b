#include "serve/query.h"

#include <charconv>

#include "serve/api_error.h"

namespace qiao::serve {
namespace {

std::string decoded_value(std::string_view text, std::string_view name) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i] == '+' ? ' ' : text[i];
      continue;
    }
    unsigned value = 0;
    const char* digits = text.data() + i + 1;
    const bool whole = i + 2 < text.size();
    if (!whole || std::from_chars(digits, digits + 2, value, 16).ptr != digits + 2)
      throw_bad_field(name, "'%' without two hexadecimal digits");
    out += static_cast<char>(value);
    i += 2;
  }
  return out;
}

}  // namespace

std::optional<std::string> query_text(const HttpRequest& request, std::string_view name) {
  std::string_view rest = request.query;
  while (!rest.empty()) {
    const std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
    const size_t equals = pair.find('=');
    if (pair.substr(0, equals) != name) continue;
    return equals == std::string_view::npos ? std::string() : decoded_value(pair.substr(equals + 1), name);
  }
  return std::nullopt;
}

std::optional<int64_t> query_integer(const HttpRequest& request, std::string_view name, int64_t least,
                                     int64_t most) {
  const std::optional<std::string> text = query_text(request, name);
  if (!text) return std::nullopt;
  int64_t value = 0;
  const char* end = text->data() + text->size();
  const auto [stopped, problem] = std::from_chars(text->data(), end, value);
  if (text->empty() || problem == std::errc::invalid_argument || stopped != end)
    throw_bad_field(name, "expected an integer, got '{}'", text->substr(0, 40));
  if (problem != std::errc() || value < least || value > most)
    throw_bad_field(name, "{} is out of range; allowed: {} to {}", text->substr(0, 40), least, most);
  return value;
}

bool query_flag(const HttpRequest& request, std::string_view name) {
  const std::optional<std::string> text = query_text(request, name);
  if (!text || *text == "false") return false;
  if (*text != "true") throw_bad_field(name, "expected true or false, got '{}'", text->substr(0, 40));
  return true;
}

}  // namespace qiao::serve
