// Conjunctions and unions of forms, and oneOf, which needs to know whether two can hold together.
#include <algorithm>

#include "base/error.h"
#include "constrain/json_schema.h"

namespace qiao::constrain {

AtomSet both(const AtomSet& a, const AtomSet& b) {
  AtomSet result;
  std::set_union(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(result));
  return result;
}

ObjectSpec ObjectSpec::both(const ObjectSpec& other) const {
  ObjectSpec result = *this;
  for (const Group& group : other.groups) {
    if (std::find(groups.begin(), groups.end(), group) == groups.end()) result.groups.push_back(group);
  }
  const std::set<std::string_view> known(required.begin(), required.end());
  for (const std::string& name : other.required) {
    if (!known.contains(name)) result.required.push_back(name);
  }
  result.min = std::max(min, other.min);
  result.max = std::min(max, other.max);
  for (const AtomSet& key : other.keys) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) result.keys.push_back(key);
  }
  return result;
}

Form Form::anything() {
  Form form{.null = true, .yes = true, .no = true};
  form.numbers.emplace_back();
  form.strings.emplace_back();
  form.arrays.emplace_back();
  form.objects.emplace_back();
  return form;
}

// A union keeps each alternative once.
void SchemaReader::unite(Form& into, Form&& more) {
  into.null |= more.null;
  into.yes |= more.yes;
  into.no |= more.no;
  const auto add = [](auto& list, auto& from) {
    for (auto& spec : from) {
      if (std::find(list.begin(), list.end(), spec) == list.end()) list.push_back(std::move(spec));
    }
  };
  add(into.numbers, more.numbers);
  add(into.strings, more.strings);
  add(into.arrays, more.arrays);
  add(into.objects, more.objects);
  if (into.size() > kMaxAlternatives) {
    throw_error(ErrorKind::kTooLarge, "{}: the schema has over {} alternatives at one place", where_,
                kMaxAlternatives);
  }
}

Form SchemaReader::both(const Form& a, const Form& b) {
  Form result{.null = a.null && b.null, .yes = a.yes && b.yes, .no = a.no && b.no};
  if (std::max({a.numbers.size() * b.numbers.size(), a.strings.size() * b.strings.size(),
                a.arrays.size() * b.arrays.size(), a.objects.size() * b.objects.size()}) >
      4 * kMaxAlternatives) {
    throw_error(ErrorKind::kTooLarge, "{}: the schema has too many alternatives together (allOf of anyOf)",
                where_);
  }
  for (const NumberSpec& x : a.numbers) {
    for (const NumberSpec& y : b.numbers) {
      NumberSpec spec = x.both(y);
      const int order = spec.min && spec.max ? compare(*spec.min, *spec.max) : -1;
      if (order > 0 || (spec.integer && spec.fractional)) continue;
      result.numbers.push_back(std::move(spec));
    }
  }
  for (const StringSpec& x : a.strings) {
    for (const StringSpec& y : b.strings) {
      StringSpec spec = x.both(y);
      if (spec.min <= spec.max && !(spec.literals && spec.literals->empty()))
        result.strings.push_back(std::move(spec));
    }
  }
  for (const ArraySpec& x : a.arrays) {
    for (const ArraySpec& y : b.arrays) {
      ArraySpec spec = x;
      spec.prefix.resize(std::max(x.prefix.size(), y.prefix.size()));
      for (size_t i = 0; i < spec.prefix.size(); ++i) spec.prefix[i] = constrain::both(x.item(i), y.item(i));
      spec.rest = constrain::both(x.rest, y.rest);
      spec.min = std::max(x.min, y.min);
      spec.max = std::min(x.max, y.max);
      spec.unique = x.unique != nullptr ? x.unique : y.unique;
      spec.evaluated = std::max(x.evaluated, y.evaluated);
      spec.all_evaluated = x.all_evaluated || y.all_evaluated;
      if (y.contains) {
        if (x.contains && *x.contains != *y.contains) {
          throw_error(ErrorKind::kUnsupported,
                      "{}: keyword \"contains\" is not supported twice for one array", where_);
        }
        spec.contains = y.contains;
        spec.min_contains = x.contains ? std::max(x.min_contains, y.min_contains) : y.min_contains;
        spec.max_contains = std::min(x.max_contains, y.max_contains);
      }
      if (spec.min <= spec.max) result.arrays.push_back(std::move(spec));
    }
  }
  for (const ObjectSpec& x : a.objects) {
    for (const ObjectSpec& y : b.objects) {
      ObjectSpec spec = x.both(y);
      if (spec.min <= spec.max) result.objects.push_back(std::move(spec));
    }
  }
  if (result.size() > kMaxAlternatives) {
    throw_error(ErrorKind::kTooLarge, "{}: the schema has over {} alternatives at one place", where_,
                kMaxAlternatives);
  }
  return result;
}

// Some of the branches hold. Where it matters which, because each evaluates properties or items, every set of
// them is an alternative.
Form SchemaReader::any_of(const Json& schema) {
  const Json& branches = list_of(schema, "anyOf");
  constexpr size_t kMaxSets = 64;
  Form any;
  std::vector<Form> sets;
  for (const Json& branch : branches) {
    Form one = form(atoms(branch));
    if (collecting_ > 0) {
      for (size_t i = 0, known = sets.size(); i < known; ++i) sets.push_back(both(sets[i], one));
      if (sets.size() > kMaxSets) unsupported(schema, "anyOf", "of so many branches beside unevaluated…");
      sets.push_back(one);
    } else {
      unite(any, std::move(one));
    }
  }
  for (Form& set : sets) unite(any, std::move(set));
  return any;
}

// What is said inside `not` evaluates nothing.
Form SchemaReader::silent(Form form) {
  for (ObjectSpec& object : form.objects) {
    for (ObjectSpec::Group& group : object.groups) group.evaluates = group.all = false;
  }
  for (ArraySpec& array : form.arrays) {
    array.evaluated = 0;
    array.all_evaluated = false;
  }
  return form;
}

// unevaluatedProperties and unevaluatedItems: each alternative knows what it evaluates.
Form SchemaReader::with_unevaluated(const Json& schema, Form result) {
  if (const auto rest = schema.find("unevaluatedProperties"); rest != schema.end()) {
    for (ObjectSpec& object : result.objects) {
      ObjectSpec::Group group{.additional = atoms(*rest), .evaluates = true, .all = true};
      bool all = false;
      for (const ObjectSpec::Group& known : object.groups) {
        if (!known.evaluates) continue;
        all |= known.all;
        for (const auto& [name, value] : known.names) group.names.emplace_back(name, AtomSet());
        for (const auto& [pattern, value] : known.patterns) group.patterns.emplace_back(pattern, AtomSet());
      }
      if (!all) object.groups.push_back(std::move(group));
    }
  }
  if (const auto rest = schema.find("unevaluatedItems"); rest != schema.end()) {
    for (ArraySpec& array : result.arrays) {
      if (array.all_evaluated) continue;
      if (array.contains) unsupported(schema, "unevaluatedItems", "beside contains");
      for (size_t i = array.evaluated; i < array.prefix.size(); ++i) {
        array.prefix[i] = constrain::both(array.prefix[i], atoms(*rest));
      }
      array.rest = constrain::both(array.rest, atoms(*rest));
      array.all_evaluated = true;
    }
  }
  return result;
}

// Exactly one of the branches: all where no two can hold together; else each with the others that it meets
// ruled out.
Form SchemaReader::one_of(const Json& schema, const Json& branches) {
  const size_t count = branches.size();
  if (count > kMaxOneOf) {  // each is held against each
    throw_error(ErrorKind::kTooLarge, "{}: keyword \"oneOf\": {} branches are over the limit of {}",
                place_of(schema), count, kMaxOneOf);
  }
  std::vector<std::vector<size_t>> meets(count);  // the branches that each may hold together with
  size_t overlaps = 0;
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = i + 1; j < count; ++j) {
      if (provably_empty(constrain::both(atoms(branches[i]), atoms(branches[j])), 0)) continue;
      if (++overlaps > kMaxOverlaps) {
        throw_error(
            ErrorKind::kTooLarge,
            "{}: keyword \"oneOf\": over {} pairs of branches may hold together; give them a property that "
            "tells them apart",
            place_of(schema), kMaxOverlaps);
      }
      meets[i].push_back(j);
      meets[j].push_back(i);
    }
  }
  Form result;
  for (size_t i = 0; i < count; ++i) {
    AtomSet alone = atoms(branches[i]);
    const AtomSet here = alone;
    for (const size_t j : meets[i]) alone = constrain::both(alone, atoms(branches[j], true));
    try {
      unite(result, form(alone));
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kUnsupported || alone == here) throw;
      unsupported(schema, "oneOf", fmt::format("its branches may hold together ({})", e.what()));
    }
  }
  return result;
}

// A cheap look, a few levels deep: true only where it is certain.
bool SchemaReader::provably_empty(const AtomSet& set, int depth) {
  if (depth == 0) looks_ = 0;
  if (depth > 4 || ++looks_ > kMaxLooks) return false;
  for (const Atom& atom : set) {
    if (open_.contains(atom)) return false;  // being read just now
  }
  const Form all = form(set);
  if (all.null || all.yes || all.no) return false;
  for (const NumberSpec& spec : all.numbers) {
    if (!NumberDfa(spec, where_).empty()) return false;
  }
  for (const StringSpec& spec : all.strings) {
    if (!StringLanguage(spec, where_).empty()) return false;
  }
  for (const ArraySpec& spec : all.arrays) {
    bool empty = false;
    for (size_t i = 0; i < std::min<size_t>(spec.min, spec.prefix.size() + 1) && !empty; ++i) {
      empty = provably_empty(spec.item(i), depth + 1);
    }
    if (!empty) return false;
  }
  for (const ObjectSpec& spec : all.objects) {
    bool empty = spec.required.size() > spec.max;
    for (size_t i = 0; i < spec.required.size() && !empty; ++i) {
      AtomSet value;
      for (const ObjectSpec::Group& group : spec.groups) {
        const auto named = std::find_if(group.names.begin(), group.names.end(),
                                        [&](const auto& entry) { return entry.first == spec.required[i]; });
        if (named != group.names.end()) {
          value = constrain::both(value, named->second);
        } else if (group.patterns.empty()) {
          value = constrain::both(value, group.additional);
        }
      }
      empty = provably_empty(value, depth + 1);
    }
    if (!empty) return false;
  }
  return true;
}

}  // namespace qiao::constrain
