// The tables of filters, by what they work on.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "text/jinja_builtins.h"

namespace qiao::jinja {

std::span<const Filter> string_filters();
std::span<const Filter> number_filters();
std::span<const Filter> sequence_filters();
std::span<const Filter> selection_filters();

// markupsafe's soft_str: a string as it is, other values as their text.
Value soft_text(const Value& value);

// item.a.b.0, for a path "a.b.0" or an index: what attribute= takes. none: the item itself.
class AttributePath {
 public:
  explicit AttributePath(const Value& attribute);
  // `default_value`: instead of what is undefined on the way; may be nullptr.
  Value get(Interpreter& interpreter, Value item, const Value* default_value = nullptr) const;

 private:
  std::vector<Value> parts_;
};

// Strings in lower case, other values as they are.
Value ignore_case(const Value& value, bool case_sensitive);

}  // namespace qiao::jinja
