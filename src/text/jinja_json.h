// JSON to values and back.
#pragma once

#include <string>

#include "base/json.h"
#include "text/jinja_value.h"

namespace qiao::jinja {

Value from_json(const Json& json);

struct JsonStyle {
  bool ascii = false;
  bool sort_keys = false;
  bool indented = false;
  std::string indent;  // of one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};

// Python's json.dumps. Throws Error(kInvalidInput) for what has no JSON.
std::string dump(const Value& value, const JsonStyle& style);

}  // namespace qiao::jinja
