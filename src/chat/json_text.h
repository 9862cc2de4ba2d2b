// JSON as it stands in generated text: written piece by piece, and skipped without being parsed.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/json.h"

namespace qiao::chat {

inline bool is_json_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// With a space after ':' and ',', as Python's json.dumps and the templates' tojson.
std::string dump_spaced(const Json& value);

// `text` (UTF-8) as the inside of a JSON string.
std::string escape_json(std::string_view text);

// Finds the end of one JSON value as its text arrives. Brackets and strings are followed; what stands between
// them is not checked.
class JsonEnd {
 public:
  // Takes bytes up to the value's end; returns how many. The value begins with the first byte ever taken,
  // which is no whitespace.
  size_t take(std::string_view bytes);
  bool done() const { return done_; }

 private:
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false, scalar_ = false, done_ = false;
};

}  // namespace qiao::chat
