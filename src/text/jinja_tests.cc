// What stands after "is".
#include <algorithm>

#include "text/jinja_builtins.h"
#include "text/jinja_operators.h"
#include "text/jinja_text.h"

namespace qiao::jinja {
namespace {

void none(const char* name, Arguments& arguments) { const Bound bound(name, arguments, {}); }

const Value& other(const char* name, Arguments& arguments) {
  const Bound bound(name, arguments, {std::string_view()}, 1);
  return arguments.positional[0];
}

template <Kind kKind>
bool is_kind(Interpreter&, const Value& value, Arguments& arguments) {
  none("test", arguments);
  return value.is(kKind);
}

bool is_defined(Interpreter&, const Value& value, Arguments& arguments) {
  none("defined", arguments);
  return !value.is_undefined();
}

template <bool kWanted>
bool is_boolean_of(Interpreter&, const Value& value, Arguments& arguments) {
  none("test", arguments);
  return value.is(Kind::kBool) && value.boolean() == kWanted;
}

bool is_integer(Interpreter&, const Value& value, Arguments& arguments) {
  none("integer", arguments);
  return value.is(Kind::kInt) || value.is(Kind::kBigInt);
}

bool is_number(Interpreter&, const Value& value, Arguments& arguments) {
  none("number", arguments);
  return value.is_number() || value.is(Kind::kBigInt);
}

template <int64_t kRest>
bool is_rest_of_two(Interpreter&, const Value& value, Arguments& arguments) {
  none("odd", arguments);
  require_defined(value);
  return equals(modulo(value, Value(int64_t{2})), Value(kRest));
}

bool is_divisible(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("divisibleby", arguments, {"num"}, 1);
  require_defined(value);
  return equals(modulo(value, *bound[0]), Value(int64_t{0}));
}

bool is_filter(Interpreter&, const Value& value, Arguments& arguments) {
  none("filter", arguments);
  return value.is_string() && find_filter(value.text()) != nullptr;
}

bool is_test(Interpreter&, const Value& value, Arguments& arguments) {
  none("test", arguments);
  return value.is_string() && find_test(value.text()) != nullptr;
}

bool is_lower_text(Interpreter&, const Value& value, Arguments& arguments) {
  none("lower", arguments);
  return is_all_lower(to_text(value));
}

bool is_upper_text(Interpreter&, const Value& value, Arguments& arguments) {
  none("upper", arguments);
  return is_all_upper(to_text(value));
}

bool is_a_sequence(Interpreter&, const Value& value, Arguments& arguments) {
  none("sequence", arguments);
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kRange:
      return true;
    default:
      return false;
  }
}

bool is_iterable_value(Interpreter&, const Value& value, Arguments& arguments) {
  none("iterable", arguments);
  return is_iterable(value);
}

bool is_callable(Interpreter&, const Value& value, Arguments& arguments) {
  none("callable", arguments);
  return value.is(Kind::kFunction) || value.is(Kind::kLoop) || value.is_undefined();
}

bool is_same(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("sameas", arguments, {"other"}, 1);
  return identical(value, *bound[0]) ||
         (value.is_string() && bound[0]->is_string() && equals(value, *bound[0]));
}

bool is_escaped(Interpreter&, const Value& value, Arguments& arguments) {
  none("escaped", arguments);
  return value.is_string() && value.string().markup;
}

bool is_in(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("in", arguments, {"seq"}, 1);
  return contains(interpreter, *bound[0], value);
}

bool is_equal(Interpreter&, const Value& value, Arguments& arguments) {
  return equals(value, other("eq", arguments));
}
bool is_not_equal(Interpreter&, const Value& value, Arguments& arguments) {
  return !equals(value, other("ne", arguments));
}
bool is_less(Interpreter&, const Value& value, Arguments& arguments) {
  return less(value, other("lt", arguments));
}
bool is_less_or_equal(Interpreter&, const Value& value, Arguments& arguments) {
  return less_or_equal(value, other("le", arguments));
}
bool is_greater(Interpreter&, const Value& value, Arguments& arguments) {
  return less(other("gt", arguments), value);
}
bool is_greater_or_equal(Interpreter&, const Value& value, Arguments& arguments) {
  return less_or_equal(other("ge", arguments), value);
}

constexpr Test kTests[] = {
    {"odd", is_rest_of_two<1>},
    {"even", is_rest_of_two<0>},
    {"divisibleby", is_divisible},
    {"defined", is_defined},
    {"undefined", is_kind<Kind::kUndefined>},
    {"filter", is_filter},
    {"test", is_test},
    {"none", is_kind<Kind::kNone>},
    {"boolean", is_kind<Kind::kBool>},
    {"false", is_boolean_of<false>},
    {"true", is_boolean_of<true>},
    {"integer", is_integer},
    {"float", is_kind<Kind::kFloat>},
    {"lower", is_lower_text},
    {"upper", is_upper_text},
    {"string", is_kind<Kind::kString>},
    {"mapping", is_kind<Kind::kDict>},
    {"number", is_number},
    {"sequence", is_a_sequence},
    {"iterable", is_iterable_value},
    {"callable", is_callable},
    {"sameas", is_same},
    {"escaped", is_escaped},
    {"in", is_in},
    {"==", is_equal},
    {"eq", is_equal},
    {"equalto", is_equal},
    {"!=", is_not_equal},
    {"ne", is_not_equal},
    {">", is_greater},
    {"gt", is_greater},
    {"greaterthan", is_greater},
    {"ge", is_greater_or_equal},
    {">=", is_greater_or_equal},
    {"<", is_less},
    {"lt", is_less},
    {"lessthan", is_less},
    {"<=", is_less_or_equal},
    {"le", is_less_or_equal},
};

}  // namespace

const Test* find_test(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kTests), std::end(kTests), [&](const Test& test) { return test.name == name; });
  return found != std::end(kTests) ? found : nullptr;
}

}  // namespace qiao::jinja
