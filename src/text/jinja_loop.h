// The "loop" variable of a for.
#pragma once

#include <functional>
#include <optional>

#include "text/jinja_value.h"

namespace qiao::jinja {

class Loop : public Collectable {
 public:
  static constexpr Kind kKind = Kind::kLoop;
  // Renders the body of a recursive loop over another iterable, one level deeper.
  using Recurse = std::function<Value(Interpreter&, const Value& iterable, int depth)>;

  // `length`: of the iterable where it is known without walking. `recurse` may be empty.
  Loop(Ref<Iterator> items, std::optional<int64_t> length, int depth, Recurse recurse);

  // The next item, which becomes the current one.
  bool advance(Interpreter& interpreter, Value& item);
  Value attribute(Interpreter& interpreter, std::string_view name);  // missing where there is none
  Value call(Interpreter& interpreter, Arguments& arguments);
  int64_t length(Interpreter& interpreter);
  std::string repr() const;
  void clear() override;

 private:
  const Value& peek(Interpreter& interpreter);  // missing at the end
  bool changed(Arguments& arguments);
  Value cycle(Arguments& arguments) const;

  Ref<Iterator> items_;
  std::optional<int64_t> length_;
  int64_t index_ = -1;
  int depth_;
  Recurse recurse_;
  Value before_ = Value::missing();
  Value current_ = Value::missing();
  Value after_ = Value::missing();
  Value last_changed_ = Value::missing();
};

}  // namespace qiao::jinja
