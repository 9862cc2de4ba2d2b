#include "text/jinja_format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "text/jinja_builtins.h"
#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

std::string printed(const char* format, int precision, double value) {
  const int size = std::snprintf(nullptr, 0, format, precision, value);
  std::string out(static_cast<size_t>(std::max(size, 0)) + 1, '\0');
  std::snprintf(out.data(), out.size(), format, precision, value);
  out.pop_back();
  return out;
}

// As repr, but with `precision` significant digits at most.
std::string general_with_point(double value, int precision) {
  precision = std::max(precision, 1);
  const std::string scientific = printed("%.*e", precision - 1, value);
  const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
  if (exponent < -4 || exponent >= precision - 1) {
    std::string mantissa = scientific.substr(0, scientific.find('e'));
    if (mantissa.find('.') != std::string::npos) {
      mantissa.erase(mantissa.find_last_not_of('0') + 1);
      if (mantissa.back() == '.') mantissa.pop_back();
    }
    return mantissa + scientific.substr(scientific.find('e'));
  }
  std::string fixed = printed("%.*f", std::max(precision - 1 - exponent, 0), value);
  if (fixed.find('.') == std::string::npos) return fixed + ".0";
  fixed.erase(fixed.find_last_not_of('0') + 1);
  return fixed.back() == '.' ? fixed + '0' : fixed;
}

std::string group(const std::string& digits, char separator, size_t size) {
  const size_t whole = digits.find_first_not_of("0123456789abcdefABCDEF");
  const size_t end = whole == std::string::npos ? digits.size() : whole;
  std::string out;
  for (size_t i = 0; i < end; ++i) {
    if (i > 0 && (end - i) % size == 0) out += separator;
    out += digits[i];
  }
  return out + digits.substr(end);
}

struct Spec : NumberStyle {
  char32_t fill = ' ';
  char align = '\0';
  bool zero = false;
  size_t width = 0;
};

int read_number(std::string_view spec, size_t& at) {
  int64_t value = 0;
  while (at < spec.size() && spec[at] >= '0' && spec[at] <= '9') {
    value = value * 10 + (spec[at++] - '0');
    if (value > INT32_MAX / 16) fail("Too many decimal digits in format string");
  }
  check_string_size(static_cast<size_t>(value));
  return static_cast<int>(value);
}

Spec parse_spec(std::string_view spec) {
  Spec result;
  size_t at = 0;
  const auto is_align = [&](size_t i) {
    return i < spec.size() && std::string_view("<>=^").find(spec[i]) != std::string_view::npos;
  };
  if (!spec.empty()) {
    size_t after = 0;
    const char32_t first = utf8_next(spec, after);
    if (is_align(after)) {
      result.fill = first;
      result.align = spec[after];
      at = after + 1;
    } else if (is_align(0)) {
      result.align = spec[0];
      at = 1;
    }
  }
  const auto peek = [&] { return at < spec.size() ? spec[at] : '\0'; };
  if (peek() == '+' || peek() == '-' || peek() == ' ') result.sign = spec[at++];
  if (peek() == '#') {
    result.alternate = true;
    ++at;
  }
  if (peek() == '0') {
    result.zero = true;
    ++at;
  }
  result.width = static_cast<size_t>(read_number(spec, at));
  if (peek() == ',' || peek() == '_') result.grouping = spec[at++];
  if (peek() == '.') {
    ++at;
    if (peek() < '0' || peek() > '9') fail("Format specifier missing precision");
    result.precision = read_number(spec, at);
  }
  if (at < spec.size()) result.type = spec[at++];
  if (at != spec.size()) fail("Invalid format specifier '{}'", spec);
  return result;
}

std::string pad_number(NumberText number, const Spec& spec) {
  const bool zeros = spec.zero && spec.align == '\0';
  const char align = zeros ? '=' : spec.align == '\0' ? '>' : spec.align;
  const char32_t fill = zeros || (spec.zero && spec.fill == ' ') ? U'0' : spec.fill;
  const bool by_four = spec.type == 'x' || spec.type == 'X' || spec.type == 'o' || spec.type == 'b';
  const auto grouped = [&] {
    return spec.grouping == '\0' ? number.digits : group(number.digits, spec.grouping, by_four ? 4 : 3);
  };
  if (align == '=') {
    if (fill == '0' && spec.grouping != '\0') {
      while (number.prefix.size() + grouped().size() < spec.width)
        number.digits.insert(number.digits.begin(), '0');
      return number.prefix + grouped();
    }
    const size_t used = std::min(spec.width, number.prefix.size());
    return number.prefix + pad(grouped(), fill, '>', spec.width - used);
  }
  return pad(number.prefix + grouped(), fill, align, spec.width);
}

}  // namespace

std::string pad(std::string text, char32_t fill, char align, size_t width) {
  const size_t length = utf8_length(text);
  if (width <= length) return text;
  check_repeated_size(4, width);
  const size_t total = width - length;
  const size_t before = align == '<' ? 0 : align == '>' ? total : total / 2;
  std::string out;
  for (size_t i = 0; i < before; ++i) append_utf8(out, fill);
  out += text;
  for (size_t i = before; i < total; ++i) append_utf8(out, fill);
  return out;
}

NumberText format_integer(int64_t value, const NumberStyle& style) {
  const uint64_t size = value < 0 ? ~static_cast<uint64_t>(value) + 1 : static_cast<uint64_t>(value);
  NumberText result;
  if (value < 0 || style.sign != '-') result.prefix.push_back(value < 0 ? '-' : style.sign);
  switch (style.type) {
    case 'b':
      result.digits = fmt::format("{:b}", size);
      break;
    case 'o':
      result.digits = fmt::format("{:o}", size);
      break;
    case 'x':
      result.digits = fmt::format("{:x}", size);
      break;
    case 'X':
      result.digits = fmt::format("{:X}", size);
      break;
    default:
      result.digits = fmt::format("{}", size);
  }
  if (style.alternate && std::string_view("boxX").find(style.type) != std::string_view::npos) {
    result.prefix += '0';
    result.prefix += style.type;
  }
  return result;
}

NumberText format_float(double value, const NumberStyle& style) {
  NumberText result;
  const bool negative = std::signbit(value) && !std::isnan(value);
  if (negative || style.sign != '-') result.prefix.push_back(negative ? '-' : style.sign);
  value = std::fabs(value);
  const char type = style.type == 'n' ? 'g' : style.type;
  if (!std::isfinite(value)) {
    result.digits = std::isnan(value) ? "nan" : "inf";
    if (type == 'E' || type == 'F' || type == 'G') result.digits = to_upper(result.digits);
    if (type == '%') result.digits += '%';
    return result;
  }
  if (type == '\0') {
    result.digits = style.precision < 0 ? float_repr(value) : general_with_point(value, style.precision);
    return result;
  }
  const int precision = style.precision < 0 ? 6 : style.precision;
  switch (type) {
    case 'e':
      result.digits = printed(style.alternate ? "%#.*e" : "%.*e", precision, value);
      break;
    case 'E':
      result.digits = printed(style.alternate ? "%#.*E" : "%.*E", precision, value);
      break;
    case 'f':
    case 'F':
      result.digits = printed(style.alternate ? "%#.*f" : "%.*f", precision, value);
      break;
    case 'g':
      result.digits = printed(style.alternate ? "%#.*g" : "%.*g", precision, value);
      break;
    case 'G':
      result.digits = printed(style.alternate ? "%#.*G" : "%.*G", precision, value);
      break;
    default:  // '%'
      result.digits = printed("%.*f", precision, value * 100) + '%';
  }
  return result;
}

std::string format_value(const Value& value, std::string_view text) {
  if (text.empty()) return to_text(value);
  if (value.is(Kind::kBigInt)) fail_overflow();
  if (!value.is_string() && !value.is_number()) {
    fail("unsupported format string passed to {}.__format__", type_name(value));
  }
  Spec spec = parse_spec(text);
  const auto is_type = [&](std::string_view types) {
    return spec.type == '\0' || types.find(spec.type) != std::string_view::npos;
  };
  if (value.is_string()) {
    if (!is_type("s")) fail("Unknown format code '{}' for object of type 'str'", spec.type);
    if (spec.align == '=') fail("'=' alignment not allowed in string format specifier");
    std::string_view shown = value.text();
    if (spec.precision >= 0) shown = shown.substr(0, utf8_offset(shown, static_cast<size_t>(spec.precision)));
    return pad(std::string(shown), spec.zero && spec.fill == ' ' ? U'0' : spec.fill,
               spec.align == '\0' ? '<' : spec.align, spec.width);
  }
  if (value.is_integral() && is_type("dboxXcn")) {
    if (spec.precision >= 0) fail("Precision not allowed in integer format specifier");
    if (spec.type == 'c') {
      std::string shown;
      if (value.integer() < 0 || value.integer() > 0x10FFFF) fail("%c arg not in range(0x110000)");
      append_utf8(shown, static_cast<char32_t>(value.integer()));
      return pad(std::move(shown), spec.fill, spec.align == '\0' ? '<' : spec.align, spec.width);
    }
    return pad_number(format_integer(value.integer(), spec), spec);
  }
  if (!is_type("eEfFgGn%")) {
    fail("Unknown format code '{}' for object of type '{}'", spec.type, type_name(value));
  }
  return pad_number(format_float(value.number(), spec), spec);
}

}  // namespace qiao::jinja
