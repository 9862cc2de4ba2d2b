// The filters, tests, methods and functions that a template can name.
#pragma once

#include <initializer_list>
#include <map>
#include <string_view>

#include "text/jinja_value.h"

namespace qiao::jinja {

// A filter gets what stands before the "|" and its arguments. Plain functions in tables: no state.
using FilterBody = Value (*)(Interpreter&, const Value& value, Arguments& arguments);
struct Filter {
  std::string_view name;
  FilterBody body;
};

using TestBody = bool (*)(Interpreter&, const Value& value, Arguments& arguments);
struct Test {
  std::string_view name;
  TestBody body;
};

// nullptr for an unknown name.
const Filter* find_filter(std::string_view name);
const Test* find_test(std::string_view name);

// A method of a built-in type. `changes`: it would change its object, which the sandbox forbids.
using MethodBody = Value (*)(Interpreter&, const Value& self, Arguments& arguments);
struct Method {
  std::string_view name;
  MethodBody body;  // nullptr: there, but not supported
  bool changes = false;
};

// The methods called `name`, type by type (nullptr where a type has none).
struct AttributeNames {
  const Method* string = nullptr;
  const Method* list = nullptr;
  const Method* tuple = nullptr;
  const Method* dict = nullptr;
  bool internal = false;  // __name__, which Python's objects have and the sandbox hides
};
AttributeNames find_attribute_names(std::string_view name);
const Method* find_string_method(std::string_view name);
const Method* find_list_method(std::string_view name);
const Method* find_tuple_method(std::string_view name);
const Method* find_dict_method(std::string_view name);

// value.name and value[name] as jinja2's sandbox looks them up: an attribute or an item, else undefined.
Value get_attribute(Interpreter& interpreter, const Value& value, std::string_view name,
                    const AttributeNames& names);
Value get_item(Interpreter& interpreter, const Value& value, const Value& key);

// The global functions: range, dict, namespace, joiner, cycler, raise_exception, strftime_now…; missing for
// others.
Value find_global(Interpreter& interpreter, std::string_view name);

// The name of a parameter that is given by position alone.
inline constexpr std::string_view kPositional = {};

// Arguments against the names of a function's parameters, as a Python call binds them. Throws for too many,
// unknown or doubled ones, and for an absent one of the first `required`.
class Bound {
 public:
  Bound(std::string_view function, Arguments& arguments, std::initializer_list<std::string_view> names,
        size_t required = 0);
  const Value* operator[](size_t index) const { return values_[index]; }  // nullptr: not given
  int64_t integer(size_t index, int64_t fallback) const;
  bool truth(size_t index, bool fallback) const;
  // Throws where it is not a string.
  std::string_view text(size_t index, std::string_view fallback) const;
  Value value(size_t index, const Value& fallback) const {
    return values_[index] ? *values_[index] : fallback;
  }

 private:
  static constexpr size_t kMaxParameters = 6;
  std::string_view function_;
  const Value* values_[kMaxParameters] = {};
};

}  // namespace qiao::jinja
