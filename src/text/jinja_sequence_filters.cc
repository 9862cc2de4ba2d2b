// Filters on lists and dicts.
#include <algorithm>

#include "text/jinja_filters.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

Value length_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("len", arguments, {});
  if (value.is(Kind::kLoop)) return Value(value.loop().length(interpreter));
  return Value(require_length(value));
}

Value default_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("default", arguments, {"default_value", "boolean"});
  if (value.is_undefined() || (bound.truth(1, false) && !truth(value))) {
    return bound[0] ? *bound[0] : Value(std::string());
  }
  return value;
}

Value first_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("first", arguments, {});
  Value item;
  if (iterate(value)->next(interpreter, item)) return item;
  return Value::undefined("No first item, sequence was empty.");
}

// The items that reversed() walks; throws for what it refuses.
std::vector<Value> reversed(Interpreter& interpreter, const Value& value) {
  if (!length_of(value)) fail("'{}' object is not reversible", type_name(value));
  std::vector<Value> items = to_vector(interpreter, value);
  std::reverse(items.begin(), items.end());
  return items;
}

Value last_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("last", arguments, {});
  if (value.is_string() || value.is_sequence() || value.is(Kind::kRange)) {
    Value last = element_at(value, -1);
    return last.is(Kind::kMissing) ? Value::undefined("No last item, sequence was empty.") : last;
  }
  const std::vector<Value> items = reversed(interpreter, value);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items[0];
}

Value reverse_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("reverse", arguments, {});
  if (value.is_string()) {
    std::vector<char32_t> points = to_code_points(value.text());
    std::reverse(points.begin(), points.end());
    return Value(to_utf8(points), value.string().markup);
  }
  if (!is_iterable(value)) fail("argument must be iterable");
  if (!length_of(value)) {
    std::vector<Value> items = to_vector(interpreter, value);
    std::reverse(items.begin(), items.end());
    return Value::list(std::move(items));
  }
  const Value items = Value::list(reversed(interpreter, value));
  return Value(make<Iterator>(
      [items, at = size_t{0}](Interpreter&, Value& item) mutable {
        if (at >= items.items().size()) return false;
        item = items.items()[at++];
        return true;
      },
      items.depth(), "list_reverseiterator"));
}

Value list_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("list", arguments, {});
  return Value::list(to_vector(interpreter, value));
}

Value join_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("join", arguments, {"d", "attribute"});
  const AttributePath path(bound.value(1, Value()));
  const std::string separator = bound[0] ? to_text(*bound[0]) : std::string();
  const Ref<Iterator> items = iterate(value);
  std::string out;
  bool first = true;
  Value item;
  while (items->next(interpreter, item)) {
    if (!first) out += separator;
    first = false;
    append_text(out, path.get(interpreter, item));
    check_string_size(out.size());
  }
  return Value(std::move(out));
}

Value items_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("items", arguments, {});
  return Value(make<Iterator>(
      [value, at = size_t{0}](Interpreter&, Value& item) mutable {
        if (value.is_undefined()) return false;
        if (!value.is(Kind::kDict)) fail("Can only get item pairs from a mapping.");
        if (at >= value.dict().entries().size()) return false;
        const Dict::Entry& entry = value.dict().entries()[at++];
        item = Value::tuple({entry.first, entry.second});
        return true;
      },
      value.depth() + 1));
}

Value attr_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("attr", arguments, {"name"}, 1);
  require_defined(value);
  const std::string_view name = bound.text(0, {});
  const AttributeNames names = find_attribute_names(name);
  // A dict's keys are not attributes.
  if (value.is(Kind::kDict) && !names.dict && !names.internal) {
    return Value::undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return get_attribute(interpreter, value, name, names);
}

// Items with the keys they are ordered by; stable, as Python's sorted.
struct Keyed {
  Value key;
  Value item;
};

void sort_keyed(std::vector<Keyed>& items, bool reverse) {
  if (reverse) std::reverse(items.begin(), items.end());
  std::stable_sort(items.begin(), items.end(),
                   [](const Keyed& a, const Keyed& b) { return less(a.key, b.key); });
  if (reverse) std::reverse(items.begin(), items.end());
}

Value dictsort_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const std::string_view by = bound.text(1, "key");
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  require_defined(value);
  if (!value.is(Kind::kDict)) fail("'{}' object has no attribute 'items'", type_name(value));
  std::vector<Keyed> entries;
  for (const auto& [key, item] : value.dict().entries()) {
    entries.push_back(
        {ignore_case(by == "key" ? key : item, bound.truth(0, false)), Value::tuple({key, item})});
  }
  sort_keyed(entries, bound.truth(2, false));
  std::vector<Value> result;
  for (Keyed& each : entries) result.push_back(std::move(each.item));
  return Value::list(std::move(result));
}

Value sort_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  std::vector<AttributePath> paths;
  const Value attribute = bound.value(2, Value());
  if (attribute.is_string()) {
    std::string_view rest = attribute.text();
    while (true) {
      const size_t comma = rest.find(',');
      paths.emplace_back(Value(rest.substr(0, comma)));
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
    }
  } else {
    paths.emplace_back(attribute);
  }
  std::vector<Keyed> items;
  for (Value& item : to_vector(interpreter, value)) {
    std::vector<Value> key;
    for (const AttributePath& path : paths) {
      key.push_back(ignore_case(path.get(interpreter, item), bound.truth(1, false)));
    }
    items.push_back({Value::list(std::move(key)), std::move(item)});
  }
  sort_keyed(items, bound.truth(0, false));
  std::vector<Value> result;
  for (Keyed& each : items) result.push_back(std::move(each.item));
  return Value::list(std::move(result));
}

Value groupby_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("groupby", arguments, {"attribute", "default", "case_sensitive"}, 1);
  const AttributePath path(*bound[0]);
  const Value* fallback = bound[1] && !bound[1]->is_none() ? bound[1] : nullptr;
  const bool case_sensitive = bound.truth(2, false);
  std::vector<Keyed> items;
  for (Value& item : to_vector(interpreter, value)) {
    Value key = ignore_case(path.get(interpreter, item, fallback), case_sensitive);
    items.push_back({std::move(key), std::move(item)});
  }
  sort_keyed(items, false);
  std::vector<Value> groups;
  for (size_t begin = 0; begin < items.size();) {
    size_t end = begin;
    std::vector<Value> members;
    while (end < items.size() && equals(items[end].key, items[begin].key))
      members.push_back(items[end++].item);
    const Value grouper = path.get(interpreter, members[0], fallback);
    const auto group = make<Sequence>(std::vector<Value>{grouper, Value::list(std::move(members))});
    group->is_group = true;
    groups.emplace_back(Kind::kTuple, group.get());
    begin = end;
  }
  return Value::list(std::move(groups));
}

Value extreme(Interpreter& interpreter, const Value& value, Arguments& arguments, bool largest) {
  const Bound bound(largest ? "max" : "min", arguments, {"case_sensitive", "attribute"});
  const AttributePath path(bound.value(1, Value()));
  const Ref<Iterator> items = iterate(value);
  Value best;
  if (!items->next(interpreter, best)) return Value::undefined("No aggregated item, sequence was empty.");
  const bool case_sensitive = bound.truth(0, false);
  Value best_key = ignore_case(path.get(interpreter, best), case_sensitive);
  Value item;
  while (items->next(interpreter, item)) {
    Value key = ignore_case(path.get(interpreter, item), case_sensitive);
    if (!(largest ? less(best_key, key) : less(key, best_key))) continue;
    best = item;
    best_key = std::move(key);
  }
  return best;
}

Value min_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  return extreme(interpreter, value, arguments, false);
}
Value max_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  return extreme(interpreter, value, arguments, true);
}

Value sum_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("sum", arguments, {"attribute", "start"});
  const AttributePath path(bound.value(0, Value()));
  Value total = bound.value(1, Value(int64_t{0}));
  if (total.is_string()) fail("sum() can't sum strings [use ''.join(seq) instead]");
  const Ref<Iterator> items = iterate(value);
  Value item;
  while (items->next(interpreter, item)) total = add(total, path.get(interpreter, item));
  return total;
}

constexpr Filter kSequenceFilters[] = {
    {"attr", attr_filter},       {"count", length_filter},      {"d", default_filter},
    {"default", default_filter}, {"dictsort", dictsort_filter}, {"first", first_filter},
    {"groupby", groupby_filter}, {"items", items_filter},       {"join", join_filter},
    {"last", last_filter},       {"length", length_filter},     {"list", list_filter},
    {"max", max_filter},         {"min", min_filter},           {"reverse", reverse_filter},
    {"sort", sort_filter},       {"sum", sum_filter},
};

}  // namespace

std::span<const Filter> sequence_filters() { return kSequenceFilters; }

AttributePath::AttributePath(const Value& attribute) {
  if (attribute.is_none()) return;
  if (!attribute.is_string()) {
    parts_.push_back(attribute);
    return;
  }
  std::string_view rest = attribute.text();
  while (true) {
    const size_t dot = rest.find('.');
    const std::string_view part = rest.substr(0, dot);
    const bool index =
        !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string_view::npos;
    parts_.push_back(index ? Value(static_cast<int64_t>(std::stoll(std::string(part)))) : Value(part));
    if (dot == std::string_view::npos) return;
    rest.remove_prefix(dot + 1);
  }
}

Value AttributePath::get(Interpreter& interpreter, Value item, const Value* default_value) const {
  for (const Value& part : parts_) {
    item = get_item(interpreter, item, part);
    if (default_value && item.is_undefined()) item = *default_value;
  }
  return item;
}

Value ignore_case(const Value& value, bool case_sensitive) {
  return value.is_string() && !case_sensitive ? Value(to_lower(value.text())) : value;
}

}  // namespace qiao::jinja
