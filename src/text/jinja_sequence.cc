// Walking, indexing and slicing of values.
#include <algorithm>

#include "text/jinja_interpreter.h"
#include "text/jinja_loop.h"
#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

int64_t slice_bound(const Value& bound, int64_t fallback, int64_t length, int64_t lowest, int64_t highest) {
  if (bound.is_none()) return fallback;
  int64_t at = require_integer(bound, "slice indices");
  if (at < 0) at = at < -length ? lowest : std::max(at + length, lowest);
  return std::min(at, highest);
}

std::string slice_text(const String& text, int64_t start, int64_t by, int64_t count) {
  std::string out;
  if (by == 1) {
    const std::string_view all = text.text;
    const size_t begin =
        text.is_ascii() ? static_cast<size_t>(start) : utf8_offset(all, static_cast<size_t>(start));
    const size_t end = text.is_ascii() ? begin + static_cast<size_t>(count)
                                       : utf8_offset(all, static_cast<size_t>(count), begin);
    return std::string(all.substr(begin, end - begin));
  }
  const std::vector<char32_t> points = to_code_points(text.text);
  for (int64_t i = 0; i < count; ++i) append_utf8(out, points[static_cast<size_t>(start + i * by)]);
  return out;
}

}  // namespace

Value slice(const Value& value, const Value& start_value, const Value& stop_value, const Value& step_value) {
  require_defined(value);
  if (!value.is_string() && !value.is_sequence() && !value.is(Kind::kRange)) {
    if (value.is(Kind::kDict)) fail("unhashable type: 'slice'");
    fail("'{}' object is not subscriptable", type_name(value));
  }
  const int64_t length = require_length(value);
  const int64_t by = step_value.is_none() ? 1 : require_integer(step_value, "slice indices");
  if (by == 0) fail("slice step cannot be zero");
  const bool forward = by > 0;
  const int64_t lowest = forward ? 0 : -1;
  const int64_t highest = forward ? length : length - 1;
  const int64_t start = slice_bound(start_value, forward ? 0 : length - 1, length, lowest, highest);
  const int64_t stop = slice_bound(stop_value, forward ? length : -1, length, lowest, highest);
  int64_t count = 0;
  if (forward && stop > start) count = (stop - start - 1) / by + 1;
  if (!forward && start > stop) count = (start - stop - 1) / (by == INT64_MIN ? INT64_MAX : -by) + 1;
  if (value.is_string()) {
    step_bytes(value.text().size());
    return Value(slice_text(value.string(), start, by, count), value.string().markup);
  }
  step(static_cast<uint64_t>(count));
  if (value.is(Kind::kRange)) {
    const Range& range = value.range();
    int64_t new_step = 0;
    int64_t new_stop = 0;
    if (__builtin_mul_overflow(range.step, by, &new_step) ||
        __builtin_mul_overflow(new_step, count, &new_stop) ||
        __builtin_add_overflow(new_stop, range.at(start), &new_stop)) {
      fail_overflow();
    }
    return Value(make<Range>(range.at(start), new_stop, new_step));
  }
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) items.push_back(value.items()[static_cast<size_t>(start + i * by)]);
  return value.is(Kind::kList) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

Value element_at(const Value& value, int64_t index) {
  const int64_t length = require_length(value);
  if (index < 0) index += length;
  if (index < 0 || index >= length) return Value::missing();
  switch (value.kind()) {
    case Kind::kString: {
      const String& text = value.string();
      if (text.is_ascii()) return Value(text.text.substr(static_cast<size_t>(index), 1), text.markup);
      step_bytes(text.text.size());
      const size_t begin = utf8_offset(text.text, static_cast<size_t>(index));
      const size_t end = utf8_offset(text.text, 1, begin);
      return Value(text.text.substr(begin, end - begin), text.markup);
    }
    case Kind::kRange:
      return Value(value.range().at(index));
    default:
      return value.items()[static_cast<size_t>(index)];
  }
}

bool is_iterable(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kRange:
    case Kind::kView:
    case Kind::kIterator:
    case Kind::kLoop:
      return true;
    default:
      return false;
  }
}

Ref<Iterator> iterate(const Value& value) {
  const int depth = value.depth();
  switch (value.kind()) {
    case Kind::kUndefined:
      return make<Iterator>([](Interpreter&, Value&) { return false; }, 0);
    case Kind::kIterator:
      return Ref<Iterator>(&value.iterator());
    case Kind::kString:
      return make<Iterator>(
          [value, at = size_t{0}](Interpreter&, Value& item) mutable {
            const std::string_view text = value.text();
            if (at >= text.size()) return false;
            const size_t begin = at;
            utf8_next(text, at);
            item = Value(std::string(text.substr(begin, at - begin)), value.string().markup);
            return true;
          },
          depth, "str_iterator");
    case Kind::kList:
    case Kind::kTuple:
      return make<Iterator>(
          [value, at = size_t{0}](Interpreter&, Value& item) mutable {
            if (at >= value.items().size()) return false;
            item = value.items()[at++];
            return true;
          },
          depth, "list_iterator");
    case Kind::kDict:
      return make<Iterator>(
          [value, at = size_t{0}](Interpreter&, Value& item) mutable {
            if (at >= value.dict().entries().size()) return false;
            item = value.dict().entries()[at++].first;
            return true;
          },
          depth, "dict_keyiterator");
    case Kind::kRange:
      return make<Iterator>(
          [value, at = int64_t{0}](Interpreter&, Value& item) mutable {
            if (at >= value.range().length) return false;
            item = Value(value.range().at(at++));
            return true;
          },
          depth, "range_iterator");
    case Kind::kView:
      return make<Iterator>(
          [value, at = size_t{0}](Interpreter&, Value& item) mutable {
            if (at >= value.view().dict->entries().size()) return false;
            item = value.view().at(at++);
            return true;
          },
          depth, "dict_itemiterator");
    case Kind::kLoop:
      return make<Iterator>(
          [value](Interpreter& interpreter, Value& item) {
            Value each;
            if (!value.loop().advance(interpreter, each)) return false;
            item = Value::tuple({each, value});
            return true;
          },
          depth, "LoopContext");
    default:
      fail("'{}' object is not iterable", type_name(value));
  }
}

std::vector<Value> to_vector(Interpreter& interpreter, const Value& iterable) {
  if (iterable.is_sequence()) {
    step(iterable.items().size());
    return iterable.items();
  }
  const Ref<Iterator> iterator = iterate(iterable);
  std::vector<Value> items;
  Value item;
  while (iterator->next(interpreter, item)) items.push_back(std::move(item));
  return items;
}

}  // namespace qiao::jinja
