// The values of a running template: Python's, as far as templates see them. Shared, reference-counted,
// immutable but for namespaces. Not thread-safe: a value lives in one render (constants of the source: see
// make_immortal).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "text/jinja_budget.h"

namespace qiao::jinja {

class Interpreter;

enum class Kind : uint8_t {
  kMissing,  // an unset variable; never seen by an operation
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kBigInt,  // an integer over 64 bits, from JSON: can be printed and compared for equality, not computed with
  kString,
  kList,
  kTuple,
  kDict,
  kRange,
  kView,       // dict.keys(), values(), items()
  kIterator,   // generators and iterators: each item comes once
  kNamespace,  // the one that changes
  kFunction,   // whatever can be called
  kLoop,
  kCycler,
};

class Object {
 public:
  virtual ~Object();
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  void retain() noexcept {
    if (!immortal_) ++references_;
  }
  void release() noexcept {
    if (!immortal_ && --references_ == 0) delete this;
  }
  uint32_t references() const { return references_; }
  // 1 + the depth of what it holds; bounded, so that recursion over values is.
  uint16_t depth() const { return depth_; }
  void make_immortal() { immortal_ = true; }

 protected:
  Object() = default;
  void charge(size_t bytes);
  void set_depth(int held);  // throws Error(kTooLarge) past the limit

 private:
  uint32_t references_ = 0;
  uint16_t depth_ = 1;
  bool immortal_ = false;
  size_t charged_ = 0;
};

template <typename T>
class Ref {
 public:
  Ref() = default;
  explicit Ref(T* object) : object_(object) {
    if (object_) object_->retain();
  }
  Ref(const Ref& other) : Ref(other.object_) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_) object_->release();
  }
  T* get() const { return object_; }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

template <typename T, typename... Args>
Ref<T> make(Args&&... args) {
  return Ref<T>(new T(std::forward<Args>(args)...));
}

class String;
class Sequence;
class Dict;
class Range;
class View;
class Iterator;
class Namespace;
class Function;
class Loop;
class Cycler;

class Value {
 public:
  Value() = default;  // none
  explicit Value(bool value) : kind_(Kind::kBool) { bits_.boolean = value; }
  explicit Value(int64_t value) : kind_(Kind::kInt) { bits_.integer = value; }
  explicit Value(double value) : kind_(Kind::kFloat) { bits_.real = value; }
  explicit Value(std::string_view text);
  explicit Value(std::string text, bool markup = false);
  explicit Value(const char*) = delete;
  Value(Kind kind, Object* object) : kind_(kind) {
    bits_.object = object;
    if (object) object->retain();
  }
  template <typename T>
  explicit Value(const Ref<T>& ref) : Value(T::kKind, ref.get()) {}

  static Value missing() { return Value(Kind::kMissing, nullptr); }
  // `hint` is the message of the error that using it raises.
  static Value undefined(std::string hint);
  static Value list(std::vector<Value> items);
  static Value tuple(std::vector<Value> items);
  static Value big_int(std::string digits);

  Value(const Value& other) : kind_(other.kind_), bits_(other.bits_) { retain(); }
  Value(Value&& other) noexcept : kind_(other.kind_), bits_(other.bits_) { other.kind_ = Kind::kNone; }
  Value& operator=(Value other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(bits_, other.bits_);
    return *this;
  }
  ~Value() {
    if (holds_object() && bits_.object) bits_.object->release();
  }

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_none() const { return kind_ == Kind::kNone; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_integral() const {
    return kind_ == Kind::kInt || kind_ == Kind::kBool;
  }  // bool is an int in Python
  bool is_number() const { return is_integral() || kind_ == Kind::kFloat; }
  bool is_sequence() const { return kind_ == Kind::kList || kind_ == Kind::kTuple; }

  bool boolean() const { return bits_.boolean; }
  int64_t integer() const { return kind_ == Kind::kBool ? int64_t{bits_.boolean} : bits_.integer; }
  double number() const { return kind_ == Kind::kFloat ? bits_.real : static_cast<double>(integer()); }
  Object* object() const { return holds_object() ? bits_.object : nullptr; }
  int depth() const { return object() ? object()->depth() : 0; }

  // Each: only of its kind.
  const String& string() const;
  std::string_view text() const;  // of a string
  const std::vector<Value>& items() const;
  const Dict& dict() const;
  const Range& range() const;
  const View& view() const;
  Iterator& iterator() const;
  Namespace& name_space() const;
  Function& function() const;
  Loop& loop() const;
  Cycler& cycler() const;

 private:
  bool holds_object() const { return kind_ >= Kind::kBigInt || kind_ == Kind::kUndefined; }
  void retain() const {
    if (holds_object() && bits_.object) bits_.object->retain();
  }

  Kind kind_ = Kind::kNone;
  union {
    bool boolean;
    int64_t integer;
    double real;
    Object* object;
  } bits_{};
};

// What an undefined value says when it is used.
class Hint : public Object {
 public:
  explicit Hint(std::string message) : text(std::move(message)) {}
  const std::string text;
};

// A string (also: the digits of a big integer). Valid UTF-8.
class String : public Object {
 public:
  static constexpr Kind kKind = Kind::kString;
  explicit String(std::string text, bool markup = false);
  const std::string text;
  const int64_t length;  // in code points
  const bool markup;     // of |safe and |escape: joining it with plain text escapes that text
  bool is_ascii() const { return static_cast<size_t>(length) == text.size(); }
};

class Sequence : public Object {
 public:
  explicit Sequence(std::vector<Value> items);
  const std::vector<Value> items;
  bool is_group = false;  // of |groupby: a tuple whose items have the names "grouper" and "list"
};

// Insertion-ordered. Filled by its maker, then not changed.
class Dict : public Object {
 public:
  static constexpr Kind kKind = Kind::kDict;
  using Entry = std::pair<Value, Value>;
  // A key that is there keeps its place and gets the new value. Throws Error for a key that has no hash.
  void set(Value key, Value value);
  const std::vector<Entry>& entries() const { return entries_; }
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;

 private:
  template <typename Same>
  size_t locate(size_t hash, const Same& same) const;
  void rebuild(size_t slots);

  std::vector<Entry> entries_;
  std::vector<uint32_t> hashes_;  // of each entry
  std::vector<uint32_t> slots_;   // entry + 1 by hash, open addressing; empty for small ones
};

class Range : public Object {
 public:
  static constexpr Kind kKind = Kind::kRange;
  Range(int64_t start, int64_t stop, int64_t step);
  int64_t at(int64_t index) const { return start + index * step; }
  const int64_t start, stop, step;
  int64_t length;
};

class View : public Object {
 public:
  static constexpr Kind kKind = Kind::kView;
  enum class What { kKeys, kValues, kItems };
  View(Ref<Dict> dict, What what);
  Value at(size_t index) const;
  const Ref<Dict> dict;
  const What what;
};

class Iterator : public Object {
 public:
  static constexpr Kind kKind = Kind::kIterator;
  using Next = std::function<bool(Interpreter&, Value&)>;
  // `held_depth`: the depth of the values that `next` holds.
  Iterator(Next next, int held_depth, const char* type_name = "generator");
  bool next(Interpreter& interpreter, Value& item);
  const char* const type_name;

 private:
  Next next_;
  bool done_ = false;
};

// Cleared when the render ends, so that namespaces and macros that hold each other do not leak.
class Collectable : public Object {
 public:
  virtual void clear() = 0;
};

class Namespace : public Collectable {
 public:
  static constexpr Kind kKind = Kind::kNamespace;
  Namespace();
  const Value* find(std::string_view name) const;
  void set(std::string_view name, Value value);
  const std::vector<std::pair<std::string, Value>>& entries() const { return entries_; }
  void clear() override { entries_.clear(); }

 private:
  std::vector<std::pair<std::string, Value>> entries_;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

class Function : public Object {
 public:
  static constexpr Kind kKind = Kind::kFunction;
  virtual Value call(Interpreter& interpreter, Arguments& arguments) = 0;
  virtual const char* type_name() const = 0;
  virtual std::string repr() const = 0;
  // nullptr-like (missing) where it has no such attribute.
  virtual Value attribute(std::string_view name) const;
};

class NativeFunction : public Function {
 public:
  using Body = std::function<Value(Interpreter&, Arguments&)>;
  NativeFunction(const char* name, Body body, int held_depth = 0);
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    return body_(interpreter, arguments);
  }
  const char* type_name() const override { return "builtin_function_or_method"; }
  std::string repr() const override;

 private:
  const char* name_;
  Body body_;
};

class Cycler : public Object {
 public:
  static constexpr Kind kKind = Kind::kCycler;
  explicit Cycler(std::vector<Value> items);
  const std::vector<Value> items;
  size_t position = 0;
};

// As type(value).__name__ says.
const char* type_name(const Value& value);

// Throws Error(kInvalidInput), the message of every wrong operation. Where in the source is added by the
// interpreter.
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorKind::kInvalidInput, fmt::format(format, std::forward<Args>(args)...));
}

// What any use of an undefined value but printing, looping and testing does.
[[noreturn]] void fail_undefined(const Value& undefined);

inline void require_defined(const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
}

}  // namespace qiao::jinja
