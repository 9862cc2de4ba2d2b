#include "constrain/json_nodes.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/quote.h"

namespace qiao::constrain {
namespace {

constexpr size_t kMaxTagSets = 256;
constexpr size_t kMaxNames = 4000;  // of one object: the machine follows all at once

// Tells specs apart; equal ones share an automaton.
std::string signature_of(const StringSpec& spec) {
  std::string text = fmt::format("{} {} {} ", spec.min, spec.max, spec.literals ? 1 : 0);
  for (const auto& pattern : spec.patterns) {
    text +=
        fmt::format("{}{} {}:{} ", pattern.negative, pattern.format, pattern.source.size(), pattern.source);
  }
  if (spec.literals) {
    for (const std::string& literal : *spec.literals) text += fmt::format("{}:{} ", literal.size(), literal);
  }
  return text;
}

std::string signature_of(const NumberSpec& spec) {
  const auto text = [](const std::optional<Decimal>& bound) {
    return bound ? bound->text() : std::string("-");
  };
  std::string signature = fmt::format("{}{}{} {}{} {}{}", spec.integer, spec.fractional, spec.digits_only,
                                      text(spec.min), spec.min_excluded, text(spec.max), spec.max_excluded);
  for (const Decimal& multiple : spec.multiples) {
    signature += ' ';
    signature += multiple.text();
  }
  return signature;
}

}  // namespace

JsonNodes::JsonNodes(Json schema, std::string_view where, const JsonStyle& style,
                     const ConstraintLimits& limits)
    : schema_(std::move(schema)),
      reader_(schema_, where),
      limits_(limits),
      digits_only_(style.canonical_literals) {
  any_text_ = string_of({});
  root_ = node_of(reader_.root());
  for (uint32_t id = 0; id < sets_.size(); ++id) fill(id);
  find_possible();
  if (!possible_[root_] && !limits.may_be_empty) {
    throw_error(ErrorKind::kInvalidInput, "{}: no JSON value satisfies the schema", where);
  }
}

uint32_t JsonNodes::node_of(const AtomSet& set) {
  const auto [it, added] = index_.try_emplace(set, static_cast<uint32_t>(sets_.size()));
  if (added) {
    if (sets_.size() >= limits_.max_schema_nodes) {
      throw_error(ErrorKind::kTooLarge, "{}: the schema needs over {} combinations of sub-schemas",
                  reader_.where(), limits_.max_schema_nodes);
    }
    sets_.push_back(set);
  }
  return it->second;
}

void JsonNodes::fill(uint32_t id) {
  const Form form = reader_.form(AtomSet(sets_[id]));
  JsonNode node{.null = form.null, .yes = form.yes, .no = form.no};
  for (const NumberSpec& spec : form.numbers) {
    const uint32_t number = number_of(spec);
    if (!numbers_[number].empty()) node.numbers.push_back(number);
  }
  for (const StringSpec& spec : form.strings) {
    const uint32_t language = string_of(spec);
    if (!languages_[language].empty()) node.strings.push_back(language);
  }
  for (const ArraySpec& spec : form.arrays) node.arrays.push_back(add_array(spec));
  for (const ObjectSpec& spec : form.objects) node.objects.push_back(add_object(spec));
  nodes_.push_back(std::move(node));
}

uint32_t JsonNodes::number_of(NumberSpec spec) {
  spec.digits_only |= digits_only_ && spec.integer;
  std::string signature = signature_of(spec);
  if (const auto known = number_index_.find(signature); known != number_index_.end()) return known->second;
  numbers_.emplace_back(spec, reader_.where());
  const auto id = static_cast<uint32_t>(numbers_.size() - 1);
  number_index_.emplace(std::move(signature), id);
  return id;
}

uint32_t JsonNodes::string_of(const StringSpec& spec) {
  std::string signature = signature_of(spec);
  if (const auto known = string_index_.find(signature); known != string_index_.end()) return known->second;
  languages_.emplace_back(spec, reader_.where());
  spend(languages_.back());
  const auto id = static_cast<uint32_t>(languages_.size() - 1);
  string_index_.emplace(std::move(signature), id);
  return id;
}

// Many expressions, each within its limit, are too much as well.
void JsonNodes::spend(const StringLanguage& language) {
  constexpr size_t kMaxWork = 10'000'000;
  spent_ += language.work();
  if (spent_ > kMaxWork) {
    throw_error(ErrorKind::kTooLarge, "{}: the schema's patterns and texts take too long to compile together",
                reader_.where());
  }
}

uint32_t JsonNodes::add_array(const ArraySpec& spec) {
  JsonArray array{.min = spec.min, .max = spec.max};
  for (const AtomSet& item : spec.prefix) array.prefix.push_back(node_of(item));
  array.rest = node_of(spec.rest);
  if (spec.unique != nullptr && spec.max > 1) add_unique(spec, array);
  if (spec.contains && (spec.min_contains > 0 || spec.max_contains != kUnbounded)) {
    array.has_contains = true;
    array.min_contains = spec.min_contains;
    array.max_contains = spec.max_contains;
    const auto with = [&](const AtomSet& item) { return node_of(both(item, *spec.contains)); };
    // Without an upper limit it does no harm that an item is not counted that could be.
    const auto without = [&](const AtomSet& item) {
      if (spec.max_contains == kUnbounded) return node_of(item);
      AtomSet negated;
      if (spec.contains->size() != 1 || (*spec.contains)[0].schema == nullptr) {
        throw_error(ErrorKind::kUnsupported, "{}: keyword \"maxContains\" is not supported here",
                    reader_.where());
      }
      negated.push_back({(*spec.contains)[0].schema, !(*spec.contains)[0].negative});
      return node_of(both(item, negated));
    };
    for (const AtomSet& item : spec.prefix) {
      array.prefix_with.push_back(with(item));
      array.prefix_without.push_back(without(item));
    }
    array.rest_with = with(spec.rest);
    array.rest_without = without(spec.rest);
  }
  arrays_.push_back(std::move(array));
  return static_cast<uint32_t>(arrays_.size() - 1);
}

// Which values have come can be remembered where they are few.
void JsonNodes::add_unique(const ArraySpec& spec, JsonArray& array) {
  constexpr size_t kMaxValues = 64;
  const Form form = reader_.form(spec.rest);
  std::vector<Json> values;
  std::set<std::string> texts;
  if (form.null) values.emplace_back(nullptr);
  if (form.yes) values.emplace_back(true);
  if (form.no) values.emplace_back(false);
  bool few = spec.prefix.empty() && !spec.contains && form.arrays.empty() && form.objects.empty();
  for (const NumberSpec& number : form.numbers) {
    few = few && number.min && number.max && *number.min == *number.max && !number.min_excluded &&
          !number.max_excluded;
    if (few) values.push_back(parse_json(number.min->text(), reader_.where()));
    few = few && Decimal::of(values.back()) == *number.min;  // else it has too many digits
  }
  for (const StringSpec& string : form.strings) {
    few = few && string.literals;
    if (few) texts.insert(string.literals->begin(), string.literals->end());
  }
  values.insert(values.end(), texts.begin(), texts.end());
  if (!few || values.size() > kMaxValues) {
    reader_.unsupported(
        *spec.unique, "uniqueItems",
        fmt::format("items can be told apart only where they are of a list of at most {} plain values",
                    kMaxValues));
  }
  for (Json& value : values) array.unique.push_back(node_of(both(spec.rest, reader_.only(std::move(value)))));
}

// Whether propertyNames takes the name.
bool JsonNodes::name_allowed(const ObjectSpec& spec, const std::string& name) {
  return std::all_of(spec.keys.begin(), spec.keys.end(), [&](const AtomSet& key) {
    const Form form = reader_.form(key);
    return std::any_of(form.strings.begin(), form.strings.end(), [&](const StringSpec& text) {
      return !languages_[string_of(text.both({.literals = {{name}}}))].empty();
    });
  });
}

uint32_t JsonNodes::add_object(const ObjectSpec& spec) {
  JsonObject object{.min = spec.min, .max = spec.max};
  std::vector<std::string> names;
  std::set<std::string> seen;
  const auto add_name = [&](const std::string& name) {
    if (seen.insert(name).second) names.push_back(name);
  };
  std::vector<StringSpec::Pattern> patterns;
  for (const ObjectSpec::Group& group : spec.groups) {
    for (const auto& [name, value] : group.names) add_name(name);
    for (const auto& [source, value] : group.patterns) {
      const StringSpec::Pattern pattern{.source = source};
      if (std::find(patterns.begin(), patterns.end(), pattern) == patterns.end()) patterns.push_back(pattern);
    }
  }
  for (const std::string& name : spec.required) add_name(name);
  if (names.size() > kMaxNames) {
    throw_error(ErrorKind::kTooLarge, "{}: an object with over {} named properties", reader_.where(),
                kMaxNames);
  }
  std::vector<std::unordered_map<std::string_view, const AtomSet*>> named(spec.groups.size());
  for (size_t g = 0; g < spec.groups.size(); ++g) {
    for (const auto& [name, value] : spec.groups[g].names) named[g].emplace(name, &value);
  }
  std::map<std::string, uint32_t> finders;
  for (const StringSpec::Pattern& pattern : patterns)
    finders[pattern.source] = string_of({.patterns = {pattern}});
  const std::set<std::string> required(spec.required.begin(), spec.required.end());
  for (const std::string& name : names) {
    AtomSet value;
    for (size_t g = 0; g < spec.groups.size(); ++g) {
      const ObjectSpec::Group& group = spec.groups[g];
      const auto own = named[g].find(name);
      bool found = own != named[g].end();
      if (found) value = both(value, *own->second);
      for (const auto& [source, more] : group.patterns) {
        if (!languages_[finders[source]].contains(name)) continue;
        value = both(value, more);
        found = true;
      }
      if (!found) value = both(value, group.additional);
    }
    if (!spec.keys.empty() && !name_allowed(spec, name)) value = {{nullptr, false}};
    const uint32_t language = string_of({.literals = {{name}}});
    object.names.push_back({language, node_of(value), required.contains(name), false});
  }
  object.required = static_cast<uint32_t>(required.size());
  add_classes(spec, names, object);
  // Other keys are not remembered: one may come twice, and counts once. So at most one may be needed.
  if (!object.classes.empty() && object.min > object.required + 1) {
    throw_error(ErrorKind::kUnsupported,
                "{}: keyword \"minProperties\" is not supported where more than one key that the schema does "
                "not name "
                "would be needed",
                reader_.where());
  }
  objects_.push_back(std::move(object));
  return static_cast<uint32_t>(objects_.size() - 1);
}

// The keys that are none of `names`, by the patterns that they match.
void JsonNodes::add_classes(const ObjectSpec& spec, const std::vector<std::string>& names,
                            JsonObject& object) {
  std::vector<StringSpec::Pattern> patterns;
  std::map<std::string, uint32_t> tags;
  for (const ObjectSpec::Group& group : spec.groups) {
    for (const auto& [source, value] : group.patterns) {
      if (tags.try_emplace(source, patterns.size()).second) patterns.push_back({.source = source});
    }
  }
  // propertyNames: each alternative of each is one more thing that a key may match.
  StringSpec key_spec;
  for (const AtomSet& key : spec.keys) {
    const Form form = reader_.form(key);
    if (form.strings.empty()) return;
    if (form.strings.size() > 1) {
      throw_error(ErrorKind::kUnsupported, "{}: keyword \"propertyNames\" is not supported with alternatives",
                  reader_.where());
    }
    key_spec = key_spec.both(form.strings[0]);
  }
  const size_t own_patterns = patterns.size();
  std::vector<uint32_t> wanted, unwanted;
  for (const StringSpec::Pattern& pattern : key_spec.patterns) {
    (pattern.negative ? unwanted : wanted).push_back(static_cast<uint32_t>(patterns.size()));
    patterns.push_back(pattern);
  }
  const auto value_of = [&](const std::vector<uint32_t>& matched) {
    AtomSet value;
    for (const ObjectSpec::Group& group : spec.groups) {
      bool found = false;
      for (const auto& [source, more] : group.patterns) {
        if (std::find(matched.begin(), matched.end(), tags.at(source)) == matched.end()) continue;
        value = both(value, more);
        found = true;
      }
      if (!found) value = both(value, group.additional);
    }
    return value;
  };
  const auto is_false = [](const AtomSet& value) {
    return std::any_of(value.begin(), value.end(), [](const Atom& atom) { return atom.schema == nullptr; });
  };
  const auto add = [&](uint32_t language, const AtomSet& value) {
    if (!is_false(value) && !languages_[language].empty())
      object.classes.push_back({language, node_of(value), false});
  };
  if (key_spec.literals) {  // keys from a list: each is a class of its own
    for (const std::string& text : *key_spec.literals) {
      if (std::find(names.begin(), names.end(), text) != names.end()) continue;
      std::vector<uint32_t> matched;
      for (uint32_t i = 0; i < own_patterns; ++i) {
        if (languages_[string_of({.patterns = {patterns[i]}})].contains(text)) matched.push_back(i);
      }
      add(string_of(key_spec.both({.literals = {{text}}})), value_of(matched));
    }
    return;
  }
  if (patterns.empty()) {
    const AtomSet value = value_of({});
    if (is_false(value)) return;
    if (names.empty() && key_spec.min == 0 && key_spec.max == kUnbounded) return add(any_text_, value);
    languages_.emplace_back(make_tag_dfa({}, names, reader_.where()), std::vector<uint32_t>{}, key_spec.min,
                            key_spec.max);
    spend(languages_.back());
    return add(static_cast<uint32_t>(languages_.size() - 1), value);
  }
  const std::shared_ptr<LazyDfa> dfa = make_tag_dfa(patterns, names, reader_.where());
  const size_t states = dfa->explore(10'000);
  std::set<std::vector<uint32_t>> tag_sets{{}};
  for (uint32_t s = 0; s < states; ++s) tag_sets.insert(dfa->tags(s));
  if (tag_sets.size() > kMaxTagSets) {
    throw_error(ErrorKind::kTooLarge, "{}: patternProperties overlap in over {} ways", reader_.where(),
                kMaxTagSets);
  }
  const auto name_tag = static_cast<uint32_t>(patterns.size());
  bool spent = false;
  for (const std::vector<uint32_t>& matched : tag_sets) {
    const auto matches = [&](uint32_t tag) {
      return std::binary_search(matched.begin(), matched.end(), tag);
    };
    if (matches(name_tag) || !std::all_of(wanted.begin(), wanted.end(), matches) ||
        std::any_of(unwanted.begin(), unwanted.end(), matches)) {
      continue;
    }
    const AtomSet value = value_of(matched);
    if (is_false(value)) continue;
    languages_.emplace_back(dfa, matched, key_spec.min, key_spec.max);
    if (!std::exchange(spent, true)) spend(languages_.back());  // they share the automaton
    add(static_cast<uint32_t>(languages_.size() - 1), value);
  }
}

// Which nodes some finite value satisfies: the least fixed point over all of them.
void JsonNodes::find_possible() {
  possible_.assign(nodes_.size(), false);
  std::vector<bool> arrays(arrays_.size()), objects(objects_.size());
  for (bool changed = true; changed;) {
    changed = false;
    // From the last, since most nodes lead to later ones.
    for (size_t i = nodes_.size(); i-- > 0;) {
      const JsonNode& node = nodes_[i];
      for (const uint32_t id : node.arrays) {
        if (!arrays[id] && array_possible(arrays_[id])) arrays[id] = changed = true;
      }
      for (const uint32_t id : node.objects) {
        if (!objects[id] && object_possible(objects_[id])) objects[id] = changed = true;
      }
      const auto any = [](const std::vector<uint32_t>& ids, const std::vector<bool>& good) {
        return std::any_of(ids.begin(), ids.end(), [&](uint32_t id) { return good[id]; });
      };
      const bool possible = node.null || node.yes || node.no || !node.numbers.empty() ||
                            !node.strings.empty() || any(node.arrays, arrays) || any(node.objects, objects);
      if (possible && !possible_[i]) possible_[i] = changed = true;
    }
  }
  for (JsonNode& node : nodes_) {
    std::erase_if(node.arrays, [&](uint32_t id) { return !arrays[id]; });
    std::erase_if(node.objects, [&](uint32_t id) { return !objects[id]; });
  }
  // With all that is possible known, how long an array may become, and which keys an object may have.
  for (JsonArray& array : arrays_) {
    array_possible(array);
    std::erase_if(array.unique, [&](uint32_t id) { return !possible_[id]; });
    for (uint32_t i = 0; i <= array.prefix.size(); ++i) {
      if (!possible_[array.item(i)]) array.max = std::min(array.max, i);
    }
  }
  for (JsonObject& object : objects_) object_possible(object);
}

bool JsonNodes::object_possible(JsonObject& object) {
  object.possible_names = 0;
  object.open = false;
  bool required = true;
  for (JsonObject::Name& name : object.names) {
    name.possible = possible_[name.node];
    object.possible_names += name.possible;
    required = required && (name.possible || !name.required);
  }
  for (JsonObject::Class& keys : object.classes) {
    keys.possible = possible_[keys.node];
    object.open = object.open || keys.possible;
  }
  return required && object.required <= object.max && (object.open || object.possible_names >= object.min);
}

bool JsonNodes::array_possible(JsonArray& array) {
  uint32_t longest = kUnbounded;
  for (uint32_t i = 0; i <= array.prefix.size() && longest == kUnbounded; ++i) {
    if (!possible_[array.item(i)]) longest = i;
  }
  longest = std::min(longest, array.max);
  if (!array.unique.empty()) {
    const auto values =
        std::count_if(array.unique.begin(), array.unique.end(), [&](uint32_t id) { return possible_[id]; });
    longest = std::min(longest, static_cast<uint32_t>(values));
  }
  if (longest < array.min) return false;
  if (!array.has_contains || array.min_contains == 0) return true;
  // Enough items that can hold to contains.
  uint64_t with = 0;
  for (uint32_t i = 0; i < std::min<size_t>(array.prefix.size(), longest); ++i)
    with += possible_[array.prefix_with[i]];
  if (longest > array.prefix.size() && possible_[array.rest_with]) with += longest - array.prefix.size();
  return with >= array.min_contains && array.min_contains <= array.max_contains;
}

}  // namespace qiao::constrain
