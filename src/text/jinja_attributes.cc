// value.name and value[key], and the binding of arguments.
#include "text/jinja_builtins.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_operators.h"

namespace qiao::jinja {
namespace {

std::string object_name(const Value& value) {
  return value.is_none() ? "None" : fmt::format("{} object", type_name(value));
}

Value no_attribute(const Value& value, std::string_view name) {
  return Value::undefined(fmt::format("'{}' has no attribute '{}'", object_name(value), name));
}

Value unsafe_attribute(const Value& value, std::string_view name) {
  return Value::undefined(
      fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(value)));
}

Value bind(const Method& method, const Value& self) {
  if (method.changes) return unsafe_attribute(self, method.name);
  return Value(make<NativeFunction>(
      method.name.data(),
      [&method, self](Interpreter& interpreter, Arguments& arguments) {
        if (!method.body)
          throw_error(ErrorKind::kUnsupported, "the method {}.{}", type_name(self), method.name);
        return method.body(interpreter, self, arguments);
      },
      self.depth()));
}

Value number_attribute(const Value& value, std::string_view name) {
  if (name == "real" || (name == "numerator" && value.is_integral())) return positive(value);
  if (name == "imag") return value.is_integral() ? Value(int64_t{0}) : Value(0.0);
  if (name == "denominator" && value.is_integral()) return Value(int64_t{1});
  return Value::missing();
}

Value range_attribute(const Range& range, std::string_view name) {
  if (name == "start") return Value(range.start);
  if (name == "stop") return Value(range.stop);
  if (name == "step") return Value(range.step);
  return Value::missing();
}

Value cycler_attribute(const Value& value, std::string_view name) {
  Cycler& cycler = value.cycler();
  if (name == "current") return cycler.items[cycler.position];
  if (name == "pos") return Value(static_cast<int64_t>(cycler.position));
  if (name == "items") return Value::tuple(cycler.items);
  if (name == "next" || name == "reset") {
    const bool next = name == "next";
    return Value(make<NativeFunction>(
        next ? "next" : "reset",
        [value, next](Interpreter&, Arguments&) {
          Cycler& self = value.cycler();
          Value current = next ? self.items[self.position] : Value();
          self.position = next ? (self.position + 1) % self.items.size() : 0;
          return current;
        },
        value.depth()));
  }
  return Value::missing();
}

// An attribute of the object itself; missing where it has none of that name.
Value own_attribute(Interpreter& interpreter, const Value& value, std::string_view name,
                    const AttributeNames& names) {
  const Method* method = nullptr;
  switch (value.kind()) {
    case Kind::kString:
      method = names.string;
      break;
    case Kind::kList:
      method = names.list;
      break;
    case Kind::kTuple:
      if (static_cast<const Sequence*>(value.object())->is_group) {
        if (name == "grouper") return value.items()[0];
        if (name == "list") return value.items()[1];
      }
      method = names.tuple;
      break;
    case Kind::kDict:
      method = names.dict;
      break;
    case Kind::kNamespace: {
      const Value* found = value.name_space().find(name);
      return found ? *found : Value::missing();
    }
    case Kind::kLoop:
      return value.loop().attribute(interpreter, name);
    case Kind::kCycler:
      return cycler_attribute(value, name);
    case Kind::kFunction:
      return value.function().attribute(name);
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
      return number_attribute(value, name);
    case Kind::kRange:
      return range_attribute(value.range(), name);
    default:
      break;
  }
  if (method) return bind(*method, value);
  return names.internal ? unsafe_attribute(value, name) : Value::missing();
}

bool is_hashable(const Value& value) {
  if (value.is(Kind::kTuple)) {
    for (const Value& item : value.items()) {
      if (!is_hashable(item)) return false;
    }
  }
  return !value.is(Kind::kList) && !value.is(Kind::kDict) && !value.is(Kind::kView);
}

}  // namespace

Value get_attribute(Interpreter& interpreter, const Value& value, std::string_view name,
                    const AttributeNames& names) {
  require_defined(value);
  Value own = own_attribute(interpreter, value, name, names);
  if (!own.is(Kind::kMissing)) return own;
  if (value.is(Kind::kDict)) {
    if (const Value* found = value.dict().find(name)) return *found;
  }
  return no_attribute(value, name);
}

Value get_item(Interpreter& interpreter, const Value& value, const Value& key) {
  require_defined(value);
  if (value.is(Kind::kDict)) {
    if (is_hashable(key)) {
      if (const Value* found = value.dict().find(key)) return *found;
    }
  } else if ((value.is_string() || value.is_sequence() || value.is(Kind::kRange)) && key.is_integral()) {
    Value found = element_at(value, key.integer());
    if (!found.is(Kind::kMissing)) return found;
  }
  if (key.is_string()) {
    Value own = own_attribute(interpreter, value, key.text(), find_attribute_names(key.text()));
    if (!own.is(Kind::kMissing)) return own;
    return no_attribute(value, key.text());
  }
  return Value::undefined(fmt::format("{} has no element {}", object_name(value), to_repr(key)));
}

AttributeNames find_attribute_names(std::string_view name) {
  AttributeNames names;
  names.internal = name.size() > 4 && name.substr(0, 2) == "__" && name.substr(name.size() - 2) == "__";
  names.string = find_string_method(name);
  names.list = find_list_method(name);
  names.tuple = find_tuple_method(name);
  names.dict = find_dict_method(name);
  return names;
}

Bound::Bound(std::string_view function, Arguments& arguments, std::initializer_list<std::string_view> names,
             size_t required)
    : function_(function) {
  if (arguments.positional.size() > names.size()) {
    fail("{}() takes at most {} arguments ({} given)", function, names.size(), arguments.positional.size());
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [key, value] : arguments.named) {
    size_t index = 0;
    while (index < names.size() && names.begin()[index] != key) ++index;
    if (index == names.size()) fail("{}() got an unexpected keyword argument '{}'", function, key);
    if (values_[index]) fail("{}() got multiple values for argument '{}'", function, key);
    values_[index] = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!values_[i]) fail("{}() misses a required argument: '{}'", function, names.begin()[i]);
  }
}

int64_t Bound::integer(size_t index, int64_t fallback) const {
  return values_[index] ? require_integer(*values_[index], function_) : fallback;
}

bool Bound::truth(size_t index, bool fallback) const {
  return values_[index] ? jinja::truth(*values_[index]) : fallback;
}

std::string_view Bound::text(size_t index, std::string_view fallback) const {
  if (!values_[index]) return fallback;
  require_defined(*values_[index]);
  if (!values_[index]->is_string())
    fail("{}() argument must be str, not {}", function_, type_name(*values_[index]));
  return values_[index]->text();
}

}  // namespace qiao::jinja
