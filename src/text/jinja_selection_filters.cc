// Filters that give a generator: items are made as they are asked for.
#include <algorithm>

#include "text/jinja_filters.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_operators.h"

namespace qiao::jinja {
namespace {

int held_depth(const Value& value, const Arguments& arguments) {
  int depth = value.depth();
  for (const Value& each : arguments.positional) depth = std::max(depth, each.depth());
  for (const auto& [name, each] : arguments.named) depth = std::max(depth, each.depth());
  return depth + 1;
}

Value generator(Iterator::Next next, int depth) { return Value(make<Iterator>(std::move(next), depth)); }

class Mapper {
 public:
  Mapper(Value source, Arguments arguments) : source_(std::move(source)), arguments_(std::move(arguments)) {}

  bool operator()(Interpreter& interpreter, Value& item) {
    if (!items_) {
      if (!truth(source_)) return false;
      prepare();
      items_ = iterate(source_);
    }
    if (!items_->next(interpreter, item)) return false;
    if (!filter_) {
      item = path_.get(interpreter, item, default_.is_none() ? nullptr : &default_);
    } else {
      Arguments copy = arguments_;
      item = filter_->body(interpreter, item, copy);
    }
    return true;
  }

 private:
  void prepare() {
    if (arguments_.positional.empty()) {
      bool has_attribute = false;
      for (const auto& [name, value] : arguments_.named) {
        if (name == "attribute") {
          has_attribute = true;
          path_ = AttributePath(value);
        } else if (name == "default") {
          default_ = value;
        }
      }
      if (!has_attribute) fail("map requires a filter argument");
      if (arguments_.named.size() > (default_.is_none() ? 1u : 2u)) fail("Unexpected keyword argument");
      return;
    }
    const Value name = arguments_.positional.front();
    arguments_.positional.erase(arguments_.positional.begin());
    filter_ = name.is_string() ? find_filter(name.text()) : nullptr;
    if (!filter_) fail("No filter named {}.", to_repr(name));
  }

  Value source_;
  Arguments arguments_;
  Ref<Iterator> items_;
  AttributePath path_{Value()};
  Value default_;
  const Filter* filter_ = nullptr;
};

class Selector {
 public:
  Selector(Value source, Arguments arguments, bool by_attribute, bool wanted)
      : source_(std::move(source)),
        arguments_(std::move(arguments)),
        by_attribute_(by_attribute),
        wanted_(wanted) {}

  bool operator()(Interpreter& interpreter, Value& item) {
    if (!items_) {
      if (!truth(source_)) return false;
      prepare();
      items_ = iterate(source_);
    }
    while (items_->next(interpreter, item)) {
      const Value tested = path_.get(interpreter, item);
      Arguments copy = arguments_;
      const bool holds = test_ ? test_->body(interpreter, tested, copy) : truth(tested);
      if (holds == wanted_) return true;
    }
    return false;
  }

 private:
  Value take() {
    Value first = arguments_.positional.front();
    arguments_.positional.erase(arguments_.positional.begin());
    return first;
  }

  void prepare() {
    if (by_attribute_) {
      if (arguments_.positional.empty()) fail("Missing parameter for attribute name");
      path_ = AttributePath(take());
    }
    if (arguments_.positional.empty()) return;
    const Value name = take();
    test_ = name.is_string() ? find_test(name.text()) : nullptr;
    if (!test_) fail("No test named {}.", to_repr(name));
  }

  Value source_;
  Arguments arguments_;
  bool by_attribute_;
  bool wanted_;
  Ref<Iterator> items_;
  AttributePath path_{Value()};
  const Test* test_ = nullptr;
};

Value map_filter(Interpreter&, const Value& value, Arguments& arguments) {
  return generator(Mapper(value, arguments), held_depth(value, arguments));
}

template <bool kByAttribute, bool kWanted>
Value select_filter(Interpreter&, const Value& value, Arguments& arguments) {
  return generator(Selector(value, arguments, kByAttribute, kWanted), held_depth(value, arguments));
}

Value unique_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("unique", arguments, {"case_sensitive", "attribute"});
  return generator(
      [value, items = Ref<Iterator>(), seen = make<Dict>(), path = AttributePath(bound.value(1, Value())),
       case_sensitive = bound.truth(0, false)](Interpreter& interpreter, Value& item) mutable {
        if (!items) items = iterate(value);
        while (items->next(interpreter, item)) {
          Value key = ignore_case(path.get(interpreter, item), case_sensitive);
          if (seen->find(key)) continue;
          seen->set(std::move(key), Value());
          return true;
        }
        return false;
      },
      value.depth() + 1);
}

Value batch_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("batch", arguments, {"linecount", "fill_with"}, 1);
  return generator(
      [value, items = Ref<Iterator>(), size = bound.integer(0, 0), fill = bound.value(1, Value()),
       held = Value(), holds = false](Interpreter& interpreter, Value& item) mutable {
        if (!items) items = iterate(value);
        std::vector<Value> row;
        if (holds) row.push_back(std::move(held));
        holds = false;
        Value next;
        while (items->next(interpreter, next)) {
          if (static_cast<int64_t>(row.size()) == size) {
            held = std::move(next);
            holds = true;
            break;
          }
          row.push_back(std::move(next));
        }
        if (row.empty() && !holds) return false;
        if (!fill.is_none() && !holds && static_cast<int64_t>(row.size()) < size) {
          check_repeated_size(sizeof(Value), static_cast<size_t>(size));
          row.resize(static_cast<size_t>(size), fill);
        }
        item = Value::list(std::move(row));
        return true;
      },
      held_depth(value, arguments));
}

Value slice_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("slice", arguments, {"slices", "fill_with"}, 1);
  return generator(
      [value, all = std::vector<Value>(), started = false, slices = bound.integer(0, 0), number = int64_t{0},
       offset = int64_t{0}, fill = bound.value(1, Value())](Interpreter& interpreter, Value& item) mutable {
        if (!started) all = to_vector(interpreter, value);
        started = true;
        if (slices == 0) fail("integer division or modulo by zero");
        if (number >= slices) return false;
        const auto length = static_cast<int64_t>(all.size());
        const int64_t each = length / slices;
        const int64_t extra = length % slices;
        const int64_t begin = offset + number * each;
        if (number < extra) ++offset;
        const int64_t end = offset + (number + 1) * each;
        std::vector<Value> row(all.begin() + begin, all.begin() + end);
        if (!fill.is_none() && number >= extra) row.push_back(fill);
        ++number;
        item = Value::list(std::move(row));
        return true;
      },
      held_depth(value, arguments));
}

constexpr Filter kSelectionFilters[] = {
    {"batch", batch_filter},
    {"map", map_filter},
    {"reject", select_filter<false, false>},
    {"rejectattr", select_filter<true, false>},
    {"select", select_filter<false, true>},
    {"selectattr", select_filter<true, true>},
    {"slice", slice_filter},
    {"unique", unique_filter},
};

}  // namespace

std::span<const Filter> selection_filters() { return kSelectionFilters; }

}  // namespace qiao::jinja
