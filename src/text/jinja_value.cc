#include "text/jinja_value.h"

#include <algorithm>

#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

constexpr size_t kLinearSearch = 8;  // entries up to which a dict is searched without an index
constexpr size_t kNowhere = SIZE_MAX;

int held_depth(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  return depth;
}

}  // namespace

Object::~Object() {
  if (charged_ == 0) return;
  if (Budget* budget = Budget::current()) budget->give_back(charged_);
}

void Object::charge(size_t bytes) {
  if (Budget* budget = Budget::current()) {
    budget->charge(bytes);
    charged_ += bytes;
  }
}

void Object::set_depth(int held) {
  if (held + 1 <= depth_) return;
  if (held >= max_value_depth()) {
    throw_error(ErrorKind::kTooLarge, "values nested deeper than {}", max_value_depth());
  }
  depth_ = static_cast<uint16_t>(held + 1);
}

Value::Value(std::string_view text) : Value(std::string(text)) {}
Value::Value(std::string text, bool markup) : Value(make<String>(std::move(text), markup)) {}

Value Value::undefined(std::string hint) {
  return Value(Kind::kUndefined, make<Hint>(std::move(hint)).get());
}
Value Value::list(std::vector<Value> items) {
  return Value(Kind::kList, make<Sequence>(std::move(items)).get());
}
Value Value::tuple(std::vector<Value> items) {
  return Value(Kind::kTuple, make<Sequence>(std::move(items)).get());
}
Value Value::big_int(std::string digits) {
  return Value(Kind::kBigInt, make<String>(std::move(digits)).get());
}

const String& Value::string() const { return static_cast<const String&>(*bits_.object); }
std::string_view Value::text() const { return string().text; }
const std::vector<Value>& Value::items() const { return static_cast<const Sequence&>(*bits_.object).items; }
const Dict& Value::dict() const { return static_cast<const Dict&>(*bits_.object); }
const Range& Value::range() const { return static_cast<const Range&>(*bits_.object); }
const View& Value::view() const { return static_cast<const View&>(*bits_.object); }
Iterator& Value::iterator() const { return static_cast<Iterator&>(*bits_.object); }
Namespace& Value::name_space() const { return static_cast<Namespace&>(*bits_.object); }
Function& Value::function() const { return static_cast<Function&>(*bits_.object); }
Cycler& Value::cycler() const { return static_cast<Cycler&>(*bits_.object); }

String::String(std::string given, bool is_markup)
    : text(std::move(given)), length(static_cast<int64_t>(utf8_length(text))), markup(is_markup) {
  check_string_size(text.size());
  charge(sizeof(String) + text.capacity());
}

Sequence::Sequence(std::vector<Value> given) : items(std::move(given)) {
  charge(sizeof(Sequence) + items.capacity() * sizeof(Value));
  set_depth(held_depth(items));
}

template <typename Same>
size_t Dict::locate(size_t hash, const Same& same) const {
  const auto short_hash = static_cast<uint32_t>(hash);
  if (slots_.empty()) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (hashes_[i] == short_hash && same(entries_[i].first)) return i;
    }
    return kNowhere;
  }
  const size_t mask = slots_.size() - 1;
  for (size_t slot = short_hash & mask; slots_[slot] != 0; slot = (slot + 1) & mask) {
    const size_t entry = slots_[slot] - 1;
    if (hashes_[entry] == short_hash && same(entries_[entry].first)) return entry;
  }
  return kNowhere;
}

void Dict::rebuild(size_t slots) {
  slots_.assign(slots, 0);
  for (size_t i = 0; i < entries_.size(); ++i) {
    size_t slot = hashes_[i] & (slots - 1);
    while (slots_[slot] != 0) slot = (slot + 1) & (slots - 1);
    slots_[slot] = static_cast<uint32_t>(i + 1);
  }
}

void Dict::set(Value key, Value value) {
  const size_t hash = hash_of(key);
  set_depth(std::max(key.depth(), value.depth()));
  const size_t at = locate(hash, [&](const Value& other) { return equals(other, key); });
  if (at != kNowhere) {
    entries_[at].second = std::move(value);
    return;
  }
  charge(sizeof(Entry) + 4 * sizeof(uint32_t));
  entries_.emplace_back(std::move(key), std::move(value));
  hashes_.push_back(static_cast<uint32_t>(hash));
  if (entries_.size() <= kLinearSearch) return;
  if (entries_.size() * 2 > slots_.size()) {
    rebuild(slots_.empty() ? 4 * kLinearSearch : slots_.size() * 2);
  } else {
    size_t slot = hashes_.back() & (slots_.size() - 1);
    while (slots_[slot] != 0) slot = (slot + 1) & (slots_.size() - 1);
    slots_[slot] = static_cast<uint32_t>(entries_.size());
  }
}

const Value* Dict::find(std::string_view key) const {
  const size_t at =
      locate(hash_of_text(key), [&](const Value& k) { return k.is_string() && k.text() == key; });
  return at == kNowhere ? nullptr : &entries_[at].second;
}

const Value* Dict::find(const Value& key) const {
  if (key.is_string()) return find(key.text());
  const size_t at = locate(hash_of(key), [&](const Value& other) { return equals(other, key); });
  return at == kNowhere ? nullptr : &entries_[at].second;
}

Range::Range(int64_t from, int64_t to, int64_t by) : start(from), stop(to), step(by), length(0) {
  using Wide = __int128;
  const Wide span = by > 0 ? Wide{to} - from : Wide{from} - to;
  const Wide stride = by > 0 ? Wide{by} : -Wide{by};
  if (span > 0) {
    const Wide count = (span + stride - 1) / stride;
    if (count > 100000) {
      throw_error(ErrorKind::kTooLarge, "Range too big. The sandbox blocks ranges larger than 100000.");
    }
    length = static_cast<int64_t>(count);
  }
  charge(sizeof(Range));
}

View::View(Ref<Dict> of, What which) : dict(std::move(of)), what(which) {
  charge(sizeof(View));
  set_depth(dict->depth() + (which == What::kItems ? 1 : 0));
}

Value View::at(size_t index) const {
  const Dict::Entry& entry = dict->entries()[index];
  switch (what) {
    case What::kKeys:
      return entry.first;
    case What::kValues:
      return entry.second;
    case What::kItems:
      break;
  }
  return Value::tuple({entry.first, entry.second});
}

Iterator::Iterator(Next next, int held, const char* name) : type_name(name), next_(std::move(next)) {
  charge(sizeof(Iterator) + 64);
  set_depth(held);
}

bool Iterator::next(Interpreter& interpreter, Value& item) {
  if (done_) return false;
  step();
  if (Budget* budget = Budget::current()) budget->check_stack();
  if (next_(interpreter, item)) return true;
  done_ = true;
  return false;
}

Namespace::Namespace() { charge(sizeof(Namespace)); }

const Value* Namespace::find(std::string_view name) const {
  for (const auto& [key, value] : entries_) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Namespace::set(std::string_view name, Value value) {
  for (auto& [key, old] : entries_) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  charge(sizeof(entries_[0]) + name.size());
  entries_.emplace_back(name, std::move(value));
}

Value Function::attribute(std::string_view) const { return Value::missing(); }

NativeFunction::NativeFunction(const char* name, Body body, int held) : name_(name), body_(std::move(body)) {
  charge(sizeof(NativeFunction) + 64);
  set_depth(held);
}

std::string NativeFunction::repr() const { return fmt::format("<built-in method {}>", name_); }

Cycler::Cycler(std::vector<Value> given) : items(std::move(given)) {
  charge(sizeof(Cycler) + items.capacity() * sizeof(Value));
  set_depth(held_depth(items));
}

const char* type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
    case Kind::kBigInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return value.string().markup ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kRange:
      return "range";
    case Kind::kView:
      switch (value.view().what) {
        case View::What::kKeys:
          return "dict_keys";
        case View::What::kValues:
          return "dict_values";
        case View::What::kItems:
          return "dict_items";
      }
      return "dict_items";
    case Kind::kIterator:
      return value.iterator().type_name;
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kFunction:
      return value.function().type_name();
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kCycler:
      return "Cycler";
  }
  return "object";
}

void fail_undefined(const Value& undefined) {
  const Object* hint = undefined.object();
  fail("{}", hint ? static_cast<const Hint*>(hint)->text : std::string("value is undefined"));
}

}  // namespace qiao::jinja
