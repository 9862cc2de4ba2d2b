#include "constrain/json_automaton.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "constrain/chars.h"
#include "constrain/json_nodes.h"

namespace qiao::constrain {
namespace {

enum Kind : uint32_t {
  kReturns,
  kText,
  kTextEnd,
  kValue,
  kWord,
  kNumber,
  kString,
  kObject,
  kAfterKey,
  kArray
};

// Where between the keys and values of an object, or the items of an array.
enum Place : uint32_t {
  kOpen,    // after the bracket
  kNext,    // after a value
  kKey,     // after a comma: a key or item must come
  kBefore,  // after the colon
};

constexpr std::string_view kWords[] = {"null", "true", "false"};

class JsonAutomaton : public Automaton {
 public:
  JsonAutomaton(Json schema, std::string_view where, const JsonStyle& style, const ConstraintLimits& limits)
      : nodes_(std::move(schema), where, style, limits), style_(style) {}

  StateKey start() const override { return {kText}; }

  std::optional<AnyString> any_string(const StateKey& key) const override {
    if (key.kind != kString || key.pending != 0) return std::nullopt;
    StringLanguage& language = nodes_.language(key.a);
    const StringLanguage::At at{key.b, key.c};
    if (!language.is_any(at)) return std::nullopt;
    return AnyString{language.need(at), language.room(at)};
  }

  void expand(const StateKey& key, Expansion& out) override {
    switch (key.kind) {
      case kText:
        space(key, out);
        out.call({kValue, nodes_.root()}, {kTextEnd});
        return;
      case kTextEnd:
        space(key, out);
        out.final = true;
        return;
      case kValue:
        return value(nodes_.node(key.a), out);
      case kWord:
        return word(key.a, key.b, out);
      case kNumber:
        return number(key, out);
      case kString:
        return string(key, out);
      case kObject:
        return object(key, out);
      case kAfterKey:
        return after_key(key, out);
      case kArray:
        return array(key, out);
      default:
        return;
    }
  }

 private:
  // Which keys an object has, and how many others as far as they are counted.
  struct Seen {
    std::vector<uint64_t> names;
    uint32_t others = 0;
    auto operator<=>(const Seen&) const =
        default;  // NOLINT(modernize-use-nullptr): it takes the default for a 0
    bool has(size_t i) const { return i / 64 < names.size() && (names[i / 64] >> (i % 64) & 1) != 0; }
    void add(size_t i) {
      if (names.size() <= i / 64) names.resize(i / 64 + 1);
      names[i / 64] |= uint64_t{1} << (i % 64);
    }
  };

  // Whitespace where JSON allows it, in the style asked for.
  void space(const StateKey& key, Expansion& out) const {
    if (style_.whitespace != JsonStyle::Whitespace::kAny) return;
    out.edge('\t', '\n', key);
    out.edge('\r', key);
    out.edge(' ', key);
  }
  // True where the one space of the spaced style must come first; the state's `pending` says whether it has.
  bool one_space(const StateKey& key, Expansion& out) const {
    if (style_.whitespace != JsonStyle::Whitespace::kSpaced || key.pending != 0) return false;
    StateKey after = key;
    after.pending = 1;
    out.edge(' ', after);
    return true;
  }

  void value(const JsonNode& node, Expansion& out) const {
    const bool words[] = {node.null, node.yes, node.no};
    for (uint32_t w = 0; w < 3; ++w) {
      if (words[w]) out.edge(kWords[w][0], {kWord, w, 1});
    }
    for (const uint32_t id : node.numbers) {
      const NumberDfa& dfa = nodes_.number(id);
      for (const char byte : NumberDfa::kBytes) {
        const uint32_t to = dfa.next(NumberDfa::kStart, byte);
        if (to != NumberDfa::kDead) out.edge(byte, {kNumber, id, to});
      }
    }
    for (const uint32_t id : node.strings) out.edge('"', string_state(id, nodes_.language(id).start()));
    for (const uint32_t id : node.arrays) {
      const uint32_t none = nodes_.array(id).unique.empty() ? 0 : seen_id({});
      out.edge('[', {kArray, id, none, kOpen});
    }
    for (const uint32_t id : node.objects) out.edge('{', {kObject, id, seen_id({}), kOpen});
  }

  static void word(uint32_t which, uint32_t at, Expansion& out) {
    const std::string_view text = kWords[which];
    out.edge(text[at], at + 1 == text.size() ? kReturn : StateKey{kWord, which, at + 1});
  }

  void number(const StateKey& key, Expansion& out) const {
    const NumberDfa& dfa = nodes_.number(key.a);
    for (const char byte : NumberDfa::kBytes) {
      const uint32_t to = dfa.next(key.b, byte);
      if (to != NumberDfa::kDead) out.edge(byte, {kNumber, key.a, to});
    }
    out.final = dfa.accepts(key.b);
  }

  static StateKey string_state(uint32_t language, StringLanguage::At at, uint32_t pending = 0) {
    return {kString, language, at.state, at.count, pending};
  }

  void string(const StateKey& key, Expansion& out) {
    StringLanguage& language = nodes_.language(key.a);
    const StringLanguage::At at{key.b, key.c};
    CharSteps steps;
    language.steps(at, steps);
    const bool canonical = style_.canonical_literals && language.finite();
    expand_chars(
        steps, key.pending, canonical ? CharSpelling::kJsonCanonical : CharSpelling::kJson,
        [&](uint64_t to) { return string_state(key.a, StringLanguage::At::of(to)); },
        [&](uint32_t pending) { return string_state(key.a, at, pending); }, out);
    if (key.pending == 0 && language.accepts(at)) out.edge('"', kReturn);
  }

  uint32_t seen_id(const Seen& seen) const {
    const auto [it, added] = seen_index_.try_emplace(seen, static_cast<uint32_t>(seen_.size()));
    if (added) seen_.push_back(seen);
    return it->second;
  }

  // key.c: a Place, and from its fourth bit on the node of the value that comes.
  void object(const StateKey& key, Expansion& out) const {
    const auto place = static_cast<Place>(key.c & 7);
    if (place == kBefore) {
      if (one_space(key, out)) return;
      if (key.pending == 0) space(key, out);
      out.call({kValue, key.c >> 3}, {kObject, key.a, key.b, kNext});
      return;
    }
    if (place == kKey && one_space(key, out)) return;
    space(key, out);
    const JsonObject& object = nodes_.object(key.a);
    const Seen seen = seen_[key.b];
    if (place == kNext) {
      Expansion keys;
      add_keys(key, object, seen, keys);
      if (!keys.edges.empty()) out.edge(',', {kObject, key.a, key.b, kKey});
    } else {
      add_keys(key, object, seen, out);
    }
    if (place != kKey && complete(object, seen)) out.edge('}', kReturn);
  }

  static uint32_t count_of(const JsonObject& object, const Seen& seen) {
    uint32_t count = seen.others;
    for (size_t i = 0; i < object.names.size(); ++i) count += seen.has(i);
    return count;
  }

  static bool complete(const JsonObject& object, const Seen& seen) {
    for (size_t i = 0; i < object.names.size(); ++i) {
      if (object.names[i].required && !seen.has(i)) return false;
    }
    // Of the others only one counts for sure: the same may have come twice.
    return count_of(object, seen) - seen.others + std::min(seen.others, 1u) >= object.min;
  }

  // A quote that begins a key that may come: its text is a call, whose return knows the key. `key` is the
  // object's state, with `seen`.
  void add_keys(const StateKey& key, const JsonObject& object, const Seen& seen, Expansion& out) const {
    const uint32_t count = count_of(object, seen);
    if (count >= object.max) return;
    uint32_t missing = 0;
    size_t first = 0, last = object.names.size();
    for (size_t i = 0; i < object.names.size(); ++i) {
      const bool wanted = object.names[i].required && !seen.has(i);
      missing += wanted;
      if (!style_.schema_order) continue;
      if (seen.has(i)) first = i + 1;
      if (wanted) last = std::min(last, i + 1);
    }
    if (style_.schema_order && seen.others > 0) first = last = 0;
    const uint32_t room = object.max - count - 1;  // for others, after this key
    uint32_t possible_after = 0;                   // names of the schema's order that may still follow
    if (style_.schema_order) {
      for (size_t i = first; i < object.names.size(); ++i) possible_after += object.names[i].possible;
    }
    for (size_t i = first; i < last; ++i) {
      const JsonObject::Name& name = object.names[i];
      if (!name.possible) continue;
      if (style_.schema_order) --possible_after;
      if (seen.has(i) || room + (name.required ? 1 : 0) < missing) continue;
      if (style_.schema_order && !object.open && count + 1 + possible_after < object.min) continue;
      out.call_edge('"', string_state(name.language, nodes_.language(name.language).start()),
                    {kAfterKey, key.a, key.b, static_cast<uint32_t>(i)});
    }
    if (room < missing || (style_.schema_order && missing > 0)) return;
    for (size_t i = 0; i < object.classes.size(); ++i) {
      const JsonObject::Class& keys = object.classes[i];
      if (!keys.possible) continue;
      out.call_edge('"', string_state(keys.language, nodes_.language(keys.language).start()),
                    {kAfterKey, key.a, key.b, static_cast<uint32_t>(object.names.size() + i)});
    }
  }

  // key.b: the keys before this one; key.c: which of the names it is, or behind them which of the classes.
  // Only for keys that really come it is worked out what the object has with them.
  void after_key(const StateKey& key, Expansion& out) const {
    space(key, out);
    const JsonObject& object = nodes_.object(key.a);
    Seen with = seen_[key.b];
    const bool named = key.c < object.names.size();
    if (named) {
      with.add(key.c);
    } else if (object.counts_others() || style_.schema_order) {
      with.others = std::min(with.others + 1, object.max != kUnbounded ? object.max : 1);
    }
    const uint32_t node = named ? object.names[key.c].node : object.classes[key.c - object.names.size()].node;
    out.edge(':', {kObject, key.a, seen_id(with), kBefore | node << 3});
  }

  // Each of a list of values at most once. key.b: which have come, as an object's keys.
  void unique_array(const StateKey& key, const JsonArray& array, Expansion& out) const {
    const auto place = static_cast<Place>(key.c);
    if (place == kKey && one_space(key, out)) return;
    space(key, out);
    const Seen seen = seen_[key.b];
    uint32_t count = 0;
    for (size_t i = 0; i < array.unique.size(); ++i) count += seen.has(i);
    if (place != kKey && count >= array.min) out.edge(']', kReturn);
    if (count >= array.max || count == array.unique.size()) return;
    if (place == kNext) {
      out.edge(',', {kArray, key.a, key.b, kKey});
      return;
    }
    for (size_t i = 0; i < array.unique.size(); ++i) {
      if (seen.has(i)) continue;
      Seen with = seen;
      with.add(i);
      out.call({kValue, array.unique[i]}, {kArray, key.a, seen_id(with), kNext});
    }
  }

  // key.b: items so far, as far as they are counted; key.c: a Place, and from its fourth bit on how many of
  // them hold to contains.
  void array(const StateKey& key, Expansion& out) const {
    const JsonArray& array = nodes_.array(key.a);
    if (!array.unique.empty()) return unique_array(key, array, out);
    const auto place = static_cast<Place>(key.c & 7);
    const uint32_t held = key.c >> 3;
    if (place == kKey && one_space(key, out)) return;
    space(key, out);
    if (place != kKey && key.b >= array.min && (!array.has_contains || held >= array.min_contains)) {
      out.edge(']', kReturn);
    }
    if (key.b >= array.max) return;
    Expansion items;
    add_items(key, array, held, items);
    if (items.calls.empty()) return;
    if (place == kNext) {
      out.edge(',', {kArray, key.a, key.b, kKey | held << 3});
    } else {
      out.calls.insert(out.calls.end(), items.calls.begin(), items.calls.end());
    }
  }

  void add_items(const StateKey& key, const JsonArray& array, uint32_t held, Expansion& out) const {
    const uint32_t index = key.b;
    const uint32_t cap = array.max != kUnbounded
                             ? array.max
                             : std::max<uint32_t>(array.min, static_cast<uint32_t>(array.prefix.size()));
    const uint32_t after = std::min(index + 1, cap);
    const auto item = [&](uint32_t node, uint32_t now_held) {
      if (possible(node)) out.call({kValue, node}, {kArray, key.a, after, kNext | now_held << 3});
    };
    if (!array.has_contains) return item(array.item(index), 0);
    const uint32_t held_cap = array.max_contains != kUnbounded ? array.max_contains : array.min_contains;
    if (held < array.max_contains) {
      const uint32_t now = std::min(held + 1, held_cap);
      if (can_hold(array, after, index + 1, now))
        item(JsonArray::at(array.prefix_with, array.rest_with, index), now);
    }
    if (can_hold(array, after, index + 1, held)) {
      item(JsonArray::at(array.prefix_without, array.rest_without, index), held);
    }
  }

  // Whether enough of the items from `index` on can hold to contains.
  bool can_hold(const JsonArray& array, uint32_t, uint32_t index, uint32_t held) const {
    uint64_t with = held;
    for (size_t i = index; i < std::min<size_t>(array.prefix.size(), array.max); ++i)
      with += possible(array.prefix_with[i]);
    const uint64_t from = std::max<uint64_t>(index, array.prefix.size());
    if (array.max > from && possible(array.rest_with)) with += array.max - from;
    return with >= array.min_contains;
  }

  bool possible(uint32_t node) const {
    const JsonNode& of = nodes_.node(node);
    return of.null || of.yes || of.no || !of.numbers.empty() || !of.strings.empty() || !of.arrays.empty() ||
           !of.objects.empty();
  }

  mutable JsonNodes nodes_;  // languages grow as texts are read
  JsonStyle style_;
  mutable std::vector<Seen> seen_;
  mutable std::map<Seen, uint32_t> seen_index_;
};

}  // namespace

std::unique_ptr<Automaton> make_json_automaton(Json schema, std::string_view where, const JsonStyle& style,
                                               const ConstraintLimits& limits) {
  return std::make_unique<JsonAutomaton>(std::move(schema), where, style, limits);
}

std::shared_ptr<CompiledGrammar> compile_json_schema(const Json& schema, std::string_view where,
                                                     const JsonStyle& style, const ConstraintLimits& limits) {
  return std::make_shared<CompiledGrammar>(make_json_automaton(schema, where, style, limits), limits);
}

std::shared_ptr<CompiledGrammar> compile_json_object(const JsonStyle& style, const ConstraintLimits& limits) {
  return compile_json_schema(Json{{"type", "object"}}, "json_object", style, limits);
}

}  // namespace qiao::constrain
