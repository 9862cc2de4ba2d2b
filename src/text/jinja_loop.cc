#include "text/jinja_loop.h"

#include "text/jinja_operators.h"

namespace qiao::jinja {

Loop& Value::loop() const { return static_cast<Loop&>(*bits_.object); }

Loop::Loop(Ref<Iterator> items, std::optional<int64_t> length, int depth, Recurse recurse)
    : items_(std::move(items)), length_(length), depth_(depth), recurse_(std::move(recurse)) {
  charge(sizeof(Loop));
  set_depth(items_->depth());
}

bool Loop::advance(Interpreter& interpreter, Value& item) {
  if (!after_.is(Kind::kMissing)) {
    item = std::exchange(after_, Value::missing());
  } else if (!items_ || !items_->next(interpreter, item)) {
    return false;
  }
  ++index_;
  before_ = std::move(current_);
  current_ = item;
  return true;
}

const Value& Loop::peek(Interpreter& interpreter) {
  if (after_.is(Kind::kMissing) && items_) {
    Value item;
    if (items_->next(interpreter, item)) after_ = std::move(item);
  }
  return after_;
}

int64_t Loop::length(Interpreter& interpreter) {
  if (length_) return *length_;
  std::vector<Value> rest;
  Value item;
  while (items_ && items_->next(interpreter, item)) rest.push_back(std::move(item));
  length_ = static_cast<int64_t>(rest.size()) + index_ + 1 + (after_.is(Kind::kMissing) ? 0 : 1);
  items_ = iterate(Value::list(std::move(rest)));
  return *length_;
}

bool Loop::changed(Arguments& arguments) {
  Value now = Value::tuple(std::move(arguments.positional));
  if (!last_changed_.is(Kind::kMissing) && equals(now, last_changed_)) return false;
  last_changed_ = std::move(now);
  return true;
}

Value Loop::cycle(Arguments& arguments) const {
  if (arguments.positional.empty()) fail("no items for cycling given");
  return arguments.positional[static_cast<size_t>(index_) % arguments.positional.size()];
}

Value Loop::attribute(Interpreter& interpreter, std::string_view name) {
  if (name == "index") return Value(index_ + 1);
  if (name == "index0") return Value(index_);
  if (name == "first") return Value(index_ == 0);
  if (name == "last") return Value(peek(interpreter).is(Kind::kMissing));
  if (name == "length") return Value(length(interpreter));
  if (name == "revindex") return Value(length(interpreter) - index_);
  if (name == "revindex0") return Value(length(interpreter) - index_ - 1);
  if (name == "depth") return Value(int64_t{depth_} + 1);
  if (name == "depth0") return Value(int64_t{depth_});
  if (name == "previtem") return index_ == 0 ? Value::undefined("there is no previous item") : before_;
  if (name == "nextitem") {
    const Value& next = peek(interpreter);
    return next.is(Kind::kMissing) ? Value::undefined("there is no next item") : next;
  }
  const Ref<Loop> self(this);
  if (name == "cycle") {
    return Value(make<NativeFunction>(
        "cycle", [self](Interpreter&, Arguments& arguments) { return self->cycle(arguments); }, depth()));
  }
  if (name == "changed") {
    return Value(make<NativeFunction>(
        "changed", [self](Interpreter&, Arguments& arguments) { return Value(self->changed(arguments)); },
        depth()));
  }
  return Value::missing();
}

Value Loop::call(Interpreter& interpreter, Arguments& arguments) {
  if (!recurse_) fail("The loop must have the 'recursive' marker to be called recursively.");
  if (arguments.positional.size() != 1 || !arguments.named.empty())
    fail("a recursive loop takes one argument");
  return recurse_(interpreter, arguments.positional[0], depth_ + 1);
}

std::string Loop::repr() const {
  return fmt::format("<LoopContext {}/{}>", index_ + 1, length_ ? fmt::format("{}", *length_) : "?");
}

void Loop::clear() {
  items_ = Ref<Iterator>();
  recurse_ = nullptr;
  before_ = current_ = after_ = last_changed_ = Value::missing();
}

}  // namespace qiao::jinja
