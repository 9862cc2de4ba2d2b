// Filters on numbers, and the search over all tables.
#include "text/jinja_filters.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

bool remove_underscores(std::string_view text, std::string& out) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
      continue;
    }
    const auto alnum = [&](size_t at) {
      return at < text.size() && ((text[at] >= '0' && text[at] <= '9') || (text[at] | 0x20) >= 'a');
    };
    if (i == 0 || text[i - 1] == '_' || !alnum(i - 1) || !alnum(i + 1)) return false;
  }
  return true;
}

// int(text, base); nothing where Python raises ValueError.
std::optional<int64_t> parse_integer(std::string_view given, int64_t base) {
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  std::string_view text = strip(given, true, true);
  bool negative = false;
  if (!text.empty() && (text[0] == '+' || text[0] == '-')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  if (text.size() > 1 && text[0] == '0') {
    const char kind = static_cast<char>(text[1] | 0x20);
    const int64_t named = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (named != 0 && (base == 0 || base == named)) {
      base = named;
      text.remove_prefix(2);
      if (!text.empty() && text[0] == '_') text.remove_prefix(1);
    } else if (base == 0 && text.find_first_not_of("0_") != std::string_view::npos) {
      return std::nullopt;
    }
  }
  std::string digits;
  if (text.empty() || !remove_underscores(text, digits)) return std::nullopt;
  if (digits[0] == '-') return std::nullopt;  // from_chars takes a sign
  if (negative) digits.insert(digits.begin(), '-');
  int64_t value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value,
                                      base == 0 ? 10 : static_cast<int>(base));
  if (result.ptr != digits.data() + digits.size()) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) fail_overflow();
  return result.ec == std::errc() ? std::optional<int64_t>(value) : std::nullopt;
}

std::optional<double> parse_real(std::string_view given) {
  const std::string_view text = strip(given, true, true);
  const std::string_view unsigned_text =
      !text.empty() && (text[0] == '+' || text[0] == '-') ? text.substr(1) : text;
  const double sign = !text.empty() && text[0] == '-' ? -1 : 1;
  const std::string word = to_lower(unsigned_text);
  if (word == "inf" || word == "infinity") return sign * HUGE_VAL;
  if (word == "nan") return NAN;
  std::string digits;
  if (unsigned_text.empty() ||
      unsigned_text.find_first_not_of("0123456789._eE+-") != std::string_view::npos ||
      !remove_underscores(unsigned_text, digits) || digits[0] == '-' || digits[0] == '+') {
    return std::nullopt;
  }
  double value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (result.ptr != digits.data() + digits.size()) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) return sign * std::strtod(digits.c_str(), nullptr);
  return result.ec == std::errc() ? std::optional<double>(sign * value) : std::nullopt;
}

Value abs_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("abs", arguments, {});
  if (value.is(Kind::kFloat)) return Value(std::fabs(value.number()));
  if (value.is(Kind::kBigInt)) return value;
  if (!value.is_integral()) fail("bad operand type for abs(): '{}'", type_name(value));
  return value.integer() < 0 ? negate(value) : Value(value.integer());
}

int64_t truncated(double real) {
  if (std::fabs(real) >= 0x1p63) fail_overflow();
  return static_cast<int64_t>(real);
}

Value int_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("int", arguments, {"default", "base"});
  require_defined(value);
  const Value otherwise = bound.value(0, Value(int64_t{0}));
  if (value.is(Kind::kBigInt)) return value;
  if (value.is_integral()) return Value(value.integer());
  if (value.is(Kind::kFloat)) {
    if (std::isinf(value.number())) fail("cannot convert float infinity to integer");
    return std::isnan(value.number()) ? otherwise : Value(truncated(value.number()));
  }
  if (!value.is_string()) return otherwise;
  if (const std::optional<int64_t> whole = parse_integer(value.text(), bound.integer(1, 10)))
    return Value(*whole);
  const std::optional<double> real = parse_real(value.text());
  return real && std::isfinite(*real) ? Value(truncated(*real)) : otherwise;
}

Value float_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("float", arguments, {"default"});
  require_defined(value);
  if (value.is_number()) return Value(value.number());
  const Value otherwise = bound.value(0, Value(0.0));
  const bool text = value.is_string() || value.is(Kind::kBigInt);
  if (!text) return otherwise;
  const std::optional<double> real = parse_real(static_cast<const String*>(value.object())->text);
  return real ? Value(*real) : otherwise;
}

// Python's round(): to even on a tie of the exact decimal value.
double round_real(double value, int64_t precision) {
  if (!std::isfinite(value)) return value;
  if (precision > 323) return value;
  if (precision < -308) return std::copysign(0.0, value);
  if (precision >= 0) {
    return std::strtod(fmt::format("{:.{}f}", value, static_cast<int>(precision)).c_str(), nullptr);
  }
  const double unit = std::pow(10.0, static_cast<double>(-precision));
  return std::nearbyint(value / unit) * unit;
}

int64_t round_integer(int64_t value, int64_t precision) {
  if (precision >= 0) return value;
  if (precision < -18) return 0;
  int64_t unit = 1;
  for (int64_t i = 0; i < -precision; ++i) unit *= 10;
  int64_t quotient = value / unit;
  const int64_t rest = value % unit;
  const int64_t twice = std::llabs(rest) - (unit - std::llabs(rest));
  if (twice > 0 || (twice == 0 && quotient % 2 != 0)) quotient += value < 0 ? -1 : 1;
  int64_t result = 0;
  if (__builtin_mul_overflow(quotient, unit, &result)) fail_overflow();
  return result;
}

Value round_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("round", arguments, {"precision", "method"});
  const std::string_view method = bound.text(1, "common");
  if (method != "common" && method != "ceil" && method != "floor")
    fail("method must be common, ceil or floor");
  const int64_t precision = bound.integer(0, 0);
  if (!value.is_number()) fail("type {} doesn't define __round__ method", type_name(value));
  if (method == "common") {
    if (value.is_integral()) return Value(round_integer(value.integer(), precision));
    return Value(round_real(value.number(), precision));
  }
  const double unit = std::pow(10.0, static_cast<double>(precision));
  const double scaled = value.number() * unit;
  if (!std::isfinite(scaled)) fail("cannot convert float to integer");
  return Value((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit);
}

Value filesizeformat_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("filesizeformat", arguments, {"binary"});
  const bool binary = bound.truth(0, false);
  Arguments none;
  const double bytes = float_filter(interpreter, value, none).number();
  if (bytes == 1) return Value(std::string("1 Byte"));
  const double base = binary ? 1024 : 1000;
  if (bytes < base) return Value(fmt::format("{} Bytes", truncated(bytes)));
  static constexpr std::string_view kPrefixes = "kMGTPEZY";
  double unit = base;
  for (size_t i = 0; i < kPrefixes.size(); ++i) {
    unit *= base;
    if (bytes >= unit && i + 1 < kPrefixes.size()) continue;
    const char prefix = binary && i == 0 ? 'K' : kPrefixes[i];
    return Value(fmt::format("{:.1f} {}{}", base * bytes / unit, prefix, binary ? "iB" : "B"));
  }
  return Value();
}

constexpr Filter kNumberFilters[] = {
    {"abs", abs_filter},     {"filesizeformat", filesizeformat_filter},
    {"float", float_filter}, {"int", int_filter},
    {"round", round_filter},
};

}  // namespace

std::span<const Filter> number_filters() { return kNumberFilters; }

const Filter* find_filter(std::string_view name) {
  for (const auto table : {string_filters(), number_filters(), sequence_filters(), selection_filters()}) {
    for (const Filter& filter : table) {
      if (filter.name == name) return &filter;
    }
  }
  return nullptr;
}

}  // namespace qiao::jinja
