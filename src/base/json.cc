#include "base/json.h"

#include "base/error.h"
#include "base/quote.h"

namespace qiao {

Json parse_json(std::string_view text, std::string_view where, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    throw_error(ErrorKind::kTooLarge, "{}: JSON of {} bytes is over the limit of {}", where, text.size(),
                limits.max_bytes);
  }
  // Depth first, in one pass over the bytes: the parser's callback would slow every value down.
  size_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > limits.max_depth) {
        throw_error(ErrorKind::kInvalidInput, "{}: byte {}: JSON nested deeper than {}", where, i,
                    limits.max_depth);
      }
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error while … last read:
    // '…'", where what was last read may be all of a long text.
    constexpr size_t kShownBytes = 240;
    std::string_view what = e.what();
    if (const size_t at = what.find("] "); at != std::string_view::npos) what.remove_prefix(at + 2);
    const auto* syntax = dynamic_cast<const nlohmann::json::parse_error*>(&e);
    throw_error(ErrorKind::kInvalidInput, "{}: {}not valid JSON: {}", where,
                syntax == nullptr ? std::string() : fmt::format("byte {}: ", syntax->byte),
                printable(what, kShownBytes));
  }
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace qiao
