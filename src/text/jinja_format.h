// Python's three ways of formatting.
#pragma once

#include <string>
#include <string_view>

#include "text/jinja_value.h"

namespace qiao::jinja {

// format % arguments
std::string format_percent(const Value& format, const Value& arguments);
// format.format(*arguments)
std::string format_braces(Interpreter& interpreter, std::string_view format, const Arguments& arguments);
// format(value, spec)
std::string format_value(const Value& value, std::string_view spec);

// How a number is written: what a spec or a % conversion says.
struct NumberStyle {
  char type = '\0';  // d b o x X c e E f F g G n %; none: as str() writes it
  char sign = '-';   // '+', '-' or ' '
  bool alternate = false;
  int precision = -1;
  char grouping = '\0';  // ',' or '_'
};

// Sign and prefix ("-", "+0x") apart from the digits, between which zeros go.
struct NumberText {
  std::string prefix;
  std::string digits;
};
NumberText format_integer(int64_t value, const NumberStyle& style);
NumberText format_float(double value, const NumberStyle& style);

// `text` in a field: `align` is one of < > ^. `width` counts code points.
std::string pad(std::string text, char32_t fill, char align, size_t width);

}  // namespace qiao::jinja
