#include "formats/json_lines.h"

#include <algorithm>

namespace qiao {
namespace {

constexpr size_t kMostJsonLineBytes = size_t{64} << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

}  // namespace

bool is_blank_line(std::string_view line) {
  return line.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

size_t byte_order_mark(std::string_view text) {
  return text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
}

JsonLines::JsonLines(std::string_view text) : text_(text), at_(byte_order_mark(text)) {}

std::optional<JsonLines::Line> JsonLines::next() {
  while (at_ < text_.size()) {
    const size_t begin = at_, end = std::min(text_.find('\n', begin), text_.size());
    at_ = end + 1;
    ++number_;
    if (!is_blank_line(text_.substr(begin, end - begin))) return Line{begin, end, number_};
  }
  return std::nullopt;
}

Json parse_json_line(std::string_view line) {
  return parse_json(line, "row", {.max_bytes = kMostJsonLineBytes});
}

}  // namespace qiao
