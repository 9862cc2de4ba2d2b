// The methods of list, tuple and dict.
#include <algorithm>

#include "text/jinja_builtins.h"
#include "text/jinja_operators.h"

namespace qiao::jinja {
namespace {

Ref<Dict> ref_of(const Value& self) { return Ref<Dict>(static_cast<Dict*>(self.object())); }

Value count_items(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("count", arguments, {kPositional}, 1);
  int64_t count = 0;
  for (const Value& each : self.items()) count += equals(each, *bound[0]);
  return Value(count);
}

Value index_of_item(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("index", arguments, {kPositional, kPositional, kPositional}, 1);
  const auto size = static_cast<int64_t>(self.items().size());
  const auto clip = [&](int64_t at) { return at < 0 ? std::max<int64_t>(at + size, 0) : std::min(at, size); };
  const int64_t end = clip(bound.integer(2, size));
  for (int64_t i = clip(bound.integer(1, 0)); i < end; ++i) {
    if (equals(self.items()[static_cast<size_t>(i)], *bound[0])) return Value(i);
  }
  fail("{} is not in list", to_repr(*bound[0]));
}

Value copy_list(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("copy", arguments, {});
  return Value::list(self.items());
}

Value get_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("get", arguments, {kPositional, kPositional}, 1);
  const Value* found = self.dict().find(*bound[0]);
  return found ? *found : bound.value(1, Value());
}

template <View::What kWhat>
Value view_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("the method", arguments, {});
  return Value(make<View>(ref_of(self), kWhat));
}

Value copy_dict(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("copy", arguments, {});
  const auto copy = make<Dict>();
  for (const auto& [key, value] : self.dict().entries()) copy->set(key, value);
  return Value(copy);
}

Value fromkeys_method(Interpreter& interpreter, const Value&, Arguments& arguments) {
  const Bound bound("fromkeys", arguments, {kPositional, kPositional}, 1);
  const auto dict = make<Dict>();
  for (const Value& key : to_vector(interpreter, *bound[0])) dict->set(key, bound.value(1, Value()));
  return Value(dict);
}

constexpr Method kList[] = {
    {"append", nullptr, true}, {"clear", nullptr, true},   {"copy", copy_list},       {"count", count_items},
    {"extend", nullptr, true}, {"index", index_of_item},   {"insert", nullptr, true}, {"pop", nullptr, true},
    {"remove", nullptr, true}, {"reverse", nullptr, true}, {"sort", nullptr, true},
};

constexpr Method kTuple[] = {{"count", count_items}, {"index", index_of_item}};

constexpr Method kDict[] = {
    {"clear", nullptr, true},
    {"copy", copy_dict},
    {"fromkeys", fromkeys_method},
    {"get", get_method},
    {"items", view_method<View::What::kItems>},
    {"keys", view_method<View::What::kKeys>},
    {"pop", nullptr, true},
    {"popitem", nullptr, true},
    {"setdefault", nullptr, true},
    {"update", nullptr, true},
    {"values", view_method<View::What::kValues>},
};

template <size_t N>
const Method* find_in(const Method (&methods)[N], std::string_view name) {
  const auto* found = std::find_if(std::begin(methods), std::end(methods),
                                   [&](const Method& method) { return method.name == name; });
  return found != std::end(methods) ? found : nullptr;
}

}  // namespace

const Method* find_list_method(std::string_view name) { return find_in(kList, name); }
const Method* find_tuple_method(std::string_view name) { return find_in(kTuple, name); }
const Method* find_dict_method(std::string_view name) { return find_in(kDict, name); }

}  // namespace qiao::jinja
