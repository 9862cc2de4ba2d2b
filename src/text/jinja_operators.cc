#include "text/jinja_operators.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/ordered_map.h"
#include "text/jinja_format.h"
#include "text/jinja_loop.h"

namespace qiao::jinja {
namespace {

[[noreturn]] void fail_operands(const char* op, const Value& a, const Value& b) {
  require_defined(a);
  require_defined(b);
  if (a.is(Kind::kBigInt) || b.is(Kind::kBigInt)) fail_overflow();
  fail("unsupported operand type(s) for {}: '{}' and '{}'", op, type_name(a), type_name(b));
}

[[noreturn]] void fail_order(const char* op, const Value& a, const Value& b) {
  require_defined(a);
  require_defined(b);
  if (a.is(Kind::kBigInt) || b.is(Kind::kBigInt)) fail_overflow();
  fail("'{}' not supported between instances of '{}' and '{}'", op, type_name(a), type_name(b));
}

// <0, 0, >0; nothing for NaN. An int and a float are compared by value, without rounding the int.
std::optional<int> compare_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
  if (a.is(Kind::kFloat) && b.is(Kind::kFloat)) {
    const double x = a.number();
    const double y = b.number();
    if (std::isnan(x) || std::isnan(y)) return std::nullopt;
    return x < y ? -1 : x > y;
  }
  if (b.is_integral()) {
    const std::optional<int> swapped = compare_numbers(b, a);
    return swapped ? std::optional<int>(-*swapped) : std::nullopt;
  }
  const double y = b.number();
  if (std::isnan(y)) return std::nullopt;
  if (y >= 0x1p63) return -1;
  if (y < -0x1p63) return 1;
  const auto whole = static_cast<int64_t>(std::floor(y));
  if (a.integer() != whole) return a.integer() < whole ? -1 : 1;
  return y > std::floor(y) ? -1 : 0;
}

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!identical(a[i], b[i]) && !equals(a[i], b[i])) return false;
  }
  return true;
}

bool equal_dicts(const Dict& a, const Dict& b) {
  if (a.entries().size() != b.entries().size()) return false;
  for (const auto& [key, value] : a.entries()) {
    const Value* other = b.find(key);
    if (!other || !equals(value, *other)) return false;
  }
  return true;
}

bool equal_ranges(const Range& a, const Range& b) {
  if (a.length != b.length) return false;
  return a.length == 0 || (a.start == b.start && (a.length == 1 || a.step == b.step));
}

// Whether a comes before b; `or_equal` decides between equals. For lists: the first pair that differs
// decides.
bool ordered(const char* op, const Value& a, const Value& b, bool or_equal) {
  step();
  if (a.is_number() && b.is_number()) {
    const std::optional<int> order = compare_numbers(a, b);
    return order && (*order < 0 || (or_equal && *order == 0));
  }
  if (a.is_string() && b.is_string()) {
    step_bytes(std::min(a.text().size(), b.text().size()));
    const int order = a.text().compare(b.text());
    return order < 0 || (or_equal && order == 0);
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    const size_t shared = std::min(a.items().size(), b.items().size());
    for (size_t i = 0; i < shared; ++i) {
      if (!equals(a.items()[i], b.items()[i])) return ordered(op, a.items()[i], b.items()[i], or_equal);
    }
    return or_equal ? a.items().size() <= b.items().size() : a.items().size() < b.items().size();
  }
  fail_order(op, a, b);
}

Value repeat(const Value& value, int64_t count) {
  const size_t times = count < 0 ? 0 : static_cast<size_t>(count);
  if (value.is_string()) {
    const std::string_view unit = value.text();
    check_repeated_size(unit.size(), times);
    step_bytes(unit.size() * times);
    std::string out;
    out.reserve(unit.size() * times);
    for (size_t i = 0; i < times && !unit.empty(); ++i) out += unit;
    return Value(std::move(out), value.string().markup);
  }
  const std::vector<Value>& items = value.items();
  check_repeated_size(items.size() * sizeof(Value), times);
  std::vector<Value> out;
  out.reserve(items.size() * times);
  step(items.size() * times);
  for (size_t i = 0; i < times && !items.empty(); ++i) out.insert(out.end(), items.begin(), items.end());
  return value.is(Kind::kList) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

bool repeatable(const Value& value) { return value.is_string() || value.is_sequence(); }

size_t hash_of_integer(int64_t value) {
  return hash_of_text({reinterpret_cast<const char*>(&value), sizeof(value)});
}

int64_t power_of(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) fail_overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
  return result;
}

}  // namespace

void fail_overflow() { throw_error(ErrorKind::kTooLarge, "an integer does not fit in 64 bits"); }

int64_t require_integer(const Value& value, std::string_view what) {
  require_defined(value);
  if (value.is(Kind::kBigInt)) fail_overflow();
  if (!value.is_integral()) fail("{} must be an integer, not '{}'", what, type_name(value));
  return value.integer();
}

bool truth(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return value.boolean();
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.number() != 0;
    case Kind::kString:
      return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple:
      return !value.items().empty();
    case Kind::kDict:
      return !value.dict().entries().empty();
    case Kind::kRange:
      return value.range().length != 0;
    case Kind::kView:
      return !value.view().dict->entries().empty();
    default:
      return true;
  }
}

bool identical(const Value& a, const Value& b) {
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kMissing:
    case Kind::kNone:
      return true;
    case Kind::kBool:
      return a.boolean() == b.boolean();
    case Kind::kInt:
      return a.integer() == b.integer();
    case Kind::kFloat:
      return false;
    default:
      return a.object() == b.object();
  }
}

bool equals(const Value& a, const Value& b) {
  step();
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) == 0;
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
    case Kind::kBigInt:
      return static_cast<const String*>(a.object())->text == static_cast<const String*>(b.object())->text;
    case Kind::kList:
    case Kind::kTuple:
      return a.object() == b.object() || equal_items(a.items(), b.items());
    case Kind::kDict:
      return a.object() == b.object() || equal_dicts(a.dict(), b.dict());
    case Kind::kRange:
      return equal_ranges(a.range(), b.range());
    default:
      return a.object() == b.object();
  }
}

bool less(const Value& a, const Value& b) { return ordered("<", a, b, false); }
bool less_or_equal(const Value& a, const Value& b) { return ordered("<=", a, b, true); }

size_t hash_of_text(std::string_view text) { return keyed_hash(text); }

size_t hash_of(const Value& value) {
  step();
  switch (value.kind()) {
    case Kind::kString:
    case Kind::kBigInt:
      return hash_of_text(static_cast<const String*>(value.object())->text);
    case Kind::kBool:
    case Kind::kInt:
      return hash_of_integer(value.integer());
    case Kind::kFloat: {
      const double real = value.number();
      if (real == std::floor(real) && std::fabs(real) < 0x1p62)
        return hash_of_integer(static_cast<int64_t>(real));
      return std::hash<double>()(real);
    }
    case Kind::kTuple: {
      size_t hash = 0x9E3779B97F4A7C15u;
      for (const Value& item : value.items()) hash = (hash ^ hash_of(item)) * 0x100000001B3u;
      return hash;
    }
    case Kind::kList:
    case Kind::kDict:
    case Kind::kView:
      fail("unhashable type: '{}'", type_name(value));
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return static_cast<size_t>(value.kind());
    case Kind::kRange:
      return static_cast<size_t>(value.range().length);
    default:
      return std::hash<const void*>()(value.object());
  }
}

bool contains(Interpreter& interpreter, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kString:
      if (!item.is_string()) {
        require_defined(item);
        fail("'in <string>' requires string as left operand, not {}", type_name(item));
      }
      step_bytes(container.text().size());
      return container.text().find(item.text()) != std::string_view::npos;
    case Kind::kDict:
      return container.dict().find(item) != nullptr;
    case Kind::kView:
      if (container.view().what == View::What::kKeys) return container.view().dict->find(item) != nullptr;
      break;
    case Kind::kList:
    case Kind::kTuple:
      for (const Value& each : container.items()) {
        if (identical(each, item) || equals(each, item)) return true;
      }
      return false;
    default:
      break;
  }
  if (!is_iterable(container)) fail("argument of type '{}' is not iterable", type_name(container));
  const Ref<Iterator> iterator = iterate(container);
  Value each;
  while (iterator->next(interpreter, each)) {
    if (identical(each, item) || equals(each, item)) return true;
  }
  return false;
}

Value add(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    int64_t sum = 0;
    if (__builtin_add_overflow(a.integer(), b.integer(), &sum)) fail_overflow();
    return Value(sum);
  }
  if (a.is_number() && b.is_number()) return Value(a.number() + b.number());
  if (a.is_string() && b.is_string()) {
    const bool markup = a.string().markup || b.string().markup;
    check_string_size(a.text().size() + b.text().size());
    step_bytes(a.text().size() + b.text().size());
    std::string sum;
    if (markup) {
      sum = escape_html(a) + escape_html(b);
    } else {
      sum.reserve(a.text().size() + b.text().size());
      sum.append(a.text()).append(b.text());
    }
    return Value(std::move(sum), markup);
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    step(a.items().size() + b.items().size());
    check_repeated_size(sizeof(Value), a.items().size() + b.items().size());
    std::vector<Value> sum;
    sum.reserve(a.items().size() + b.items().size());
    sum.insert(sum.end(), a.items().begin(), a.items().end());
    sum.insert(sum.end(), b.items().begin(), b.items().end());
    return a.is(Kind::kList) ? Value::list(std::move(sum)) : Value::tuple(std::move(sum));
  }
  require_defined(a);
  require_defined(b);
  if (a.is_string()) fail("can only concatenate str (not \"{}\") to str", type_name(b));
  if (a.is_sequence()) {
    fail("can only concatenate {} (not \"{}\") to {}", type_name(a), type_name(b), type_name(a));
  }
  fail_operands("+", a, b);
}

Value subtract(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    int64_t difference = 0;
    if (__builtin_sub_overflow(a.integer(), b.integer(), &difference)) fail_overflow();
    return Value(difference);
  }
  if (a.is_number() && b.is_number()) return Value(a.number() - b.number());
  fail_operands("-", a, b);
}

Value multiply(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    int64_t product = 0;
    if (__builtin_mul_overflow(a.integer(), b.integer(), &product)) fail_overflow();
    return Value(product);
  }
  if (a.is_number() && b.is_number()) return Value(a.number() * b.number());
  if (repeatable(a) && b.is_integral()) return repeat(a, b.integer());
  if (repeatable(b) && a.is_integral()) return repeat(b, a.integer());
  fail_operands("*", a, b);
}

Value divide(const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number()) fail_operands("/", a, b);
  if (b.number() == 0) fail("division by zero");
  if (a.is_integral() && b.is_integral()) {
    return Value(
        static_cast<double>(static_cast<long double>(a.integer()) / static_cast<long double>(b.integer())));
  }
  return Value(a.number() / b.number());
}

Value floor_divide(const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number()) fail_operands("//", a, b);
  if (b.number() == 0) fail("integer division or modulo by zero");
  if (a.is_integral() && b.is_integral()) {
    if (b.integer() == -1) return negate(a);
    int64_t quotient = a.integer() / b.integer();
    if (a.integer() % b.integer() != 0 && (a.integer() < 0) != (b.integer() < 0)) --quotient;
    return Value(quotient);
  }
  const double x = a.number();
  const double y = b.number();
  double rest = std::fmod(x, y);
  double quotient = (x - rest) / y;
  if (rest != 0 && (y < 0) != (rest < 0)) quotient -= 1;
  if (quotient == 0) return Value(std::copysign(0.0, x / y));
  double whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  return Value(whole);
}

Value modulo(const Value& a, const Value& b) {
  if (a.is_string()) return Value(format_percent(a, b), a.string().markup);
  if (!a.is_number() || !b.is_number()) fail_operands("%", a, b);
  if (b.number() == 0) fail("integer modulo by zero");
  if (a.is_integral() && b.is_integral()) {
    if (b.integer() == -1) return Value(int64_t{0});
    int64_t rest = a.integer() % b.integer();
    if (rest != 0 && (rest < 0) != (b.integer() < 0)) rest += b.integer();
    return Value(rest);
  }
  const double y = b.number();
  double rest = std::fmod(a.number(), y);
  if (rest != 0) {
    if ((y < 0) != (rest < 0)) rest += y;
  } else {
    rest = std::copysign(0.0, y);
  }
  return Value(rest);
}

Value power(const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number()) fail_operands("** or pow()", a, b);
  if (a.is_integral() && b.is_integral() && b.integer() >= 0)
    return Value(power_of(a.integer(), b.integer()));
  if (a.number() == 0 && b.number() < 0) fail("0.0 cannot be raised to a negative power");
  if (a.number() < 0 && b.number() != std::floor(b.number())) {
    throw_error(ErrorKind::kUnsupported, "complex numbers");
  }
  const double result = std::pow(a.number(), b.number());
  if (std::isinf(result) && !std::isinf(a.number()) && !std::isinf(b.number()))
    fail("Numerical result out of range");
  return Value(result);
}

Value negate(const Value& a) {
  if (a.is(Kind::kFloat)) return Value(-a.number());
  require_defined(a);
  if (!a.is_integral()) {
    if (a.is(Kind::kBigInt)) fail_overflow();
    fail("bad operand type for unary -: '{}'", type_name(a));
  }
  int64_t result = 0;
  if (__builtin_sub_overflow(int64_t{0}, a.integer(), &result)) fail_overflow();
  return Value(result);
}

Value positive(const Value& a) {
  require_defined(a);
  if (a.is(Kind::kFloat) || a.is(Kind::kBigInt)) return a;
  if (!a.is_integral()) fail("bad operand type for unary +: '{}'", type_name(a));
  return Value(a.integer());
}

std::optional<int64_t> length_of(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return value.string().length;
    case Kind::kList:
    case Kind::kTuple:
      return static_cast<int64_t>(value.items().size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().entries().size());
    case Kind::kRange:
      return value.range().length;
    case Kind::kView:
      return static_cast<int64_t>(value.view().dict->entries().size());
    default:
      return std::nullopt;
  }
}

int64_t require_length(const Value& value) {
  const std::optional<int64_t> length = length_of(value);
  if (!length) fail("object of type '{}' has no len()", type_name(value));
  return *length;
}

}  // namespace qiao::jinja
