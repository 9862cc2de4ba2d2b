// The keywords of one type each, references, and what it means that a schema does not hold.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/quote.h"
#include "base/suggest.h"
#include "constrain/json_schema.h"

namespace qiao::constrain {
namespace {

constexpr uint32_t kMaxCount = 1'000'000'000;
constexpr size_t kMaxIdDepth = 256;

const Json* find(const Json& schema, const char* keyword) {
  const auto found = schema.find(keyword);
  return found == schema.end() ? nullptr : &*found;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// A fragment's %XX as bytes.
std::string unescape_percent(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && hex_value(text[i + 1]) >= 0 && hex_value(text[i + 2]) >= 0) {
      out += static_cast<char>(hex_value(text[i + 1]) * 16 + hex_value(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string resolve(const std::string& base, const std::string& reference) {
  if (reference.find("://") != std::string::npos || reference.starts_with("urn:") || base.empty())
    return reference;
  if (reference.starts_with("/")) {
    const size_t host = base.find("://");
    const size_t path = host == std::string::npos ? std::string::npos : base.find('/', host + 3);
    return base.substr(0, path) + reference;
  }
  const size_t slash = base.rfind('/');
  return slash == std::string::npos ? reference : base.substr(0, slash + 1) + reference;
}

}  // namespace

uint32_t SchemaReader::count(const Json& schema, const char* keyword, uint32_t otherwise) const {
  const Json* value = find(schema, keyword);
  if (value == nullptr) return otherwise;
  const bool whole = value->is_number_integer() ||
                     (value->is_number_float() && std::floor(value->get<double>()) == value->get<double>());
  if (!whole || value->get<double>() < 0)
    invalid(schema, keyword, "a number of 0 or more without a fraction");
  return static_cast<uint32_t>(std::min<double>(value->get<double>(), kMaxCount));
}

const Json& SchemaReader::object_of(const Json& schema, const char* keyword) const {
  const Json* value = find(schema, keyword);
  if (!value->is_object()) invalid(schema, keyword, "an object");
  return *value;
}

const Json& SchemaReader::list_of(const Json& schema, const char* keyword) const {
  const Json* value = find(schema, keyword);
  if (!value->is_array()) invalid(schema, keyword, "a list");
  return *value;
}

NumberSpec SchemaReader::number(const Json& schema) {
  NumberSpec spec;
  const auto bound = [&](const char* keyword, const char* exclusive, auto&& apply) {
    const Json* excluded = find(schema, exclusive);
    // Draft 4: true makes minimum itself excluded.
    const bool old = excluded != nullptr && excluded->is_boolean();
    if (const Json* value = find(schema, keyword)) {
      if (!value->is_number()) invalid(schema, keyword, "a number");
      apply(Decimal::of(*value), old && excluded->get<bool>());
    }
    if (excluded == nullptr || old) return;
    if (!excluded->is_number()) invalid(schema, exclusive, "a number");
    apply(Decimal::of(*excluded), true);
  };
  bound("minimum", "exclusiveMinimum", [&](const Decimal& value, bool out) { spec.at_least(value, out); });
  bound("maximum", "exclusiveMaximum", [&](const Decimal& value, bool out) { spec.at_most(value, out); });
  if (const Json* multiple = find(schema, "multipleOf")) {
    if (!multiple->is_number() || multiple->get<double>() <= 0)
      invalid(schema, "multipleOf", "a number over 0");
    const Decimal value = Decimal::of(*multiple);
    if (value == Decimal{.integer = "1"}) {
      spec.integer = true;
    } else {
      spec.multiples.push_back(value);
    }
  }
  if (const Json* format = find(schema, "format"); format != nullptr && format->is_string()) {
    if (const auto asked = number_format(format->get_ref<const std::string&>())) return spec.both(*asked);
  }
  return spec;
}

StringSpec SchemaReader::string(const Json& schema) {
  StringSpec spec;
  spec.min = count(schema, "minLength", 0);
  spec.max = count(schema, "maxLength", kUnbounded);
  if (const Json* pattern = find(schema, "pattern")) {
    if (!pattern->is_string()) invalid(schema, "pattern", "a string");
    spec.patterns.push_back({.source = pattern->get<std::string>()});
  }
  if (const Json* format = find(schema, "format")) {
    if (!format->is_string()) invalid(schema, "format", "a string");
    const std::string& name = format->get_ref<const std::string&>();
    if (number_format(name)) return spec;  // says nothing of texts
    const char* pattern = format_pattern(name);
    if (pattern == nullptr) {
      std::vector<std::string> known = format_names();
      for (std::string& number : number_format_names()) known.push_back(std::move(number));
      unsupported(schema, "format",
                  fmt::format("{} is none of {}{}", quote_text(name), fmt::join(known, ", "),
                              did_you_mean(name, known)));
    }
    if (*pattern != '\0') spec.patterns.push_back({.source = name, .format = true});
  }
  return spec;
}

ArraySpec SchemaReader::array(const Json& schema) {
  ArraySpec spec;
  spec.min = count(schema, "minItems", 0);
  spec.max = count(schema, "maxItems", kUnbounded);
  const Json* items = find(schema, "items");
  if (const Json* prefix = find(schema, "prefixItems")) {
    for (const Json& item : list_of(schema, "prefixItems")) spec.prefix.push_back(atoms(item));
    spec.evaluated = static_cast<uint32_t>(prefix->size());
    if (items != nullptr && !prefix->empty()) spec.rest = atoms(*items);
    if (items != nullptr && items->is_array())
      invalid(schema, "items", "a schema (prefixItems lists schemas)");
  } else if (items != nullptr && items->is_array()) {  // before 2020-12
    for (const Json& item : *items) spec.prefix.push_back(atoms(item));
    spec.evaluated = static_cast<uint32_t>(items->size());
    if (const Json* more = find(schema, "additionalItems")) {
      spec.rest = atoms(*more);
      spec.all_evaluated = true;
    }
  }
  if (items != nullptr && !items->is_array()) {
    spec.rest = atoms(*items);
    spec.all_evaluated = true;
  }
  if (const Json* contains = find(schema, "contains")) {
    spec.contains = atoms(*contains);
    spec.min_contains = count(schema, "minContains", 1);
    spec.max_contains = count(schema, "maxContains", kUnbounded);
  }
  if (const Json* unique = find(schema, "uniqueItems")) {
    if (!unique->is_boolean()) invalid(schema, "uniqueItems", "true or false");
    if (unique->get<bool>()) spec.unique = &schema;
  }
  return spec;
}

ObjectSpec SchemaReader::object(const Json& schema) {
  ObjectSpec spec;
  spec.min = count(schema, "minProperties", 0);
  spec.max = count(schema, "maxProperties", kUnbounded);
  ObjectSpec::Group group{.evaluates = true};
  if (find(schema, "properties") != nullptr) {
    for (const auto& [name, value] : object_of(schema, "properties").items())
      group.names.emplace_back(name, atoms(value));
  }
  if (find(schema, "patternProperties") != nullptr) {
    for (const auto& [pattern, value] : object_of(schema, "patternProperties").items()) {
      group.patterns.emplace_back(pattern, atoms(value));
    }
  }
  if (const Json* additional = find(schema, "additionalProperties")) {
    group.additional = atoms(*additional);
    group.all = true;
  }
  if (group != ObjectSpec::Group{.evaluates = true}) spec.groups.push_back(std::move(group));
  const Json* required = find(schema, "required");
  if (required != nullptr && !required->is_boolean()) {  // draft 3's boolean says nothing about this object
    std::set<std::string_view> known;
    for (const Json& name : list_of(schema, "required")) {
      if (!name.is_string()) invalid(schema, "required", "a list of names");
      if (known.insert(name.get_ref<const std::string&>()).second)
        spec.required.push_back(name.get<std::string>());
    }
  }
  if (const Json* names = find(schema, "propertyNames")) spec.keys.push_back(atoms(*names));
  return spec;
}

void SchemaReader::index_ids(const Json& schema, const std::string& base, int depth) {
  if (depth > static_cast<int>(kMaxIdDepth)) return;
  std::string here = base;
  if (schema.is_object()) {
    const bool alone = ref_alone_ && find(schema, "$ref") != nullptr;
    for (const char* keyword : {"$id", "id"}) {
      const Json* id = find(schema, keyword);
      if (id == nullptr || !id->is_string() || alone) continue;
      std::string name = id->get<std::string>();
      if (name.starts_with("#")) {
        ids_.emplace(base + name, &schema);  // draft 7's anchors
        continue;
      }
      if (name.ends_with("#")) name.pop_back();
      here = resolve(base, name);
      ids_.emplace(here, &schema);
    }
    for (const char* keyword : {"$anchor", "$dynamicAnchor"}) {
      const Json* anchor = find(schema, keyword);
      if (anchor == nullptr || !anchor->is_string()) continue;
      ids_.emplace(here + "#" + anchor->get<std::string>(), &schema);
      if (keyword[1] == 'd') ++dynamic_anchors_[anchor->get<std::string>()];
    }
    if (const Json* anchor = find(schema, "$recursiveAnchor")) dynamic_anchors_[""] += *anchor == Json(true);
    for (const char* keyword : {"$ref", "$dynamicRef", "$recursiveRef"}) {
      if (find(schema, keyword) != nullptr) bases_[&schema] = here;
    }
    for (const auto& [key, child] : schema.items()) {
      if (key != "enum" && key != "const" && child.is_structured()) index_ids(child, here, depth + 1);
    }
  } else if (schema.is_array()) {
    for (const Json& child : schema) index_ids(child, here, depth + 1);
  }
}

// What the schema's references refer to. A dynamic one is as $ref where only one anchor can be meant.
std::vector<AtomSet> SchemaReader::referred(const Json& schema, bool negative) {
  std::vector<AtomSet> all;
  for (const char* keyword : {"$ref", "$dynamicRef", "$recursiveRef"}) {
    const Json* ref = find(schema, keyword);
    if (ref == nullptr) continue;
    if (!ref->is_string()) invalid(schema, keyword, "a string");
    const std::string& reference = ref->get_ref<const std::string&>();
    if (keyword[1] == 'd') {
      const auto anchor =
          dynamic_anchors_.find(reference.substr(std::min(reference.find('#'), reference.size() - 1) + 1));
      if (anchor != dynamic_anchors_.end() && anchor->second > 1)
        unsupported(schema, keyword, "to one of several $dynamicAnchor");
    }
    if (std::string_view(keyword) == "$recursiveRef" && dynamic_anchors_[""] > 1)
      unsupported(schema, keyword, "with several $recursiveAnchor");
    all.push_back(atoms(target(schema, keyword, reference), negative));
  }
  return all;
}

const Json& SchemaReader::target(const Json& schema, const char* keyword, const std::string& reference) {
  const size_t hash = std::min(reference.find('#'), reference.size());
  const std::string file = reference.substr(0, hash);
  const std::string fragment = hash < reference.size() ? unescape_percent(reference.substr(hash + 1)) : "";
  const auto base = bases_.find(&schema);
  const std::string& from = base == bases_.end() ? std::string() : base->second;
  const std::string document = file.empty() ? from : resolve(from, file);
  const Json* at = &root_;
  if (const auto known = ids_.find(document); known != ids_.end()) {
    at = known->second;
  } else if (!file.empty()) {
    unsupported(schema, keyword,
                fmt::format("{} is not in this document, and others are not fetched", quote_text(reference)));
  }
  if (fragment.empty()) return *at;
  if (!fragment.starts_with('/')) {
    const auto anchor = ids_.find(document + "#" + fragment);
    if (anchor == ids_.end())
      invalid(schema, keyword, fmt::format("a place in the schema: there is no {}", quote_text(reference)));
    return *anchor->second;
  }
  for (size_t begin = 1; begin <= fragment.size();) {
    const size_t end = std::min(fragment.find('/', begin), fragment.size());
    std::string part;
    for (size_t i = begin; i < end; ++i) {
      const bool escape = fragment[i] == '~' && i + 1 < end;  // ~1 is a slash, ~0 a tilde
      part += escape ? (fragment[i + 1] == '1' ? '/' : '~') : fragment[i];
      i += escape;
    }
    const Json* next = nullptr;
    if (at->is_object()) {
      next = find(*at, part.c_str());
    } else if (at->is_array() && !part.empty() && part.size() < 9 &&
               part.find_first_not_of("0123456789") == std::string::npos) {
      const size_t index = std::stoul(part);
      next = index < at->size() ? &(*at)[index] : nullptr;
    }
    if (next == nullptr)
      invalid(schema, keyword, fmt::format("a place in the schema: there is no {}", quote_text(reference)));
    at = next;
    begin = end + 1;
  }
  return *at;
}

// The schema does not hold: one of its keywords does not. Each keyword of one type fails only for values of
// that type.
Form SchemaReader::negative(const Json& schema) {
  if (const Json* ref = find(schema, "$ref"); ref != nullptr && ref->is_string() && ref_alone_) {
    return form(atoms(target(schema, "$ref", ref->get_ref<const std::string&>()), true));
  }
  Form result = negated_parts(schema);
  const Form all = Form::anything();
  if (const Json* type = find(schema, "type")) {
    const Form allowed = types(schema, *type);
    Form others{.null = !allowed.null, .yes = !allowed.yes, .no = !allowed.no};
    if (allowed.numbers.empty()) {
      others.numbers = all.numbers;
    } else if (allowed.numbers[0].digits_only) {
      unsupported(schema, "type", "integer of draft 4 inside not, or a oneOf that needs it");
    } else if (allowed.numbers[0].integer) {
      others.numbers.push_back({.fractional = true});
    }
    if (allowed.strings.empty()) others.strings = all.strings;
    if (allowed.arrays.empty()) others.arrays = all.arrays;
    if (allowed.objects.empty()) others.objects = all.objects;
    unite(result, std::move(others));
  }
  if (const Json* constant = find(schema, "const")) unite(result, not_value(schema, *constant));
  if (find(schema, "enum") != nullptr) {
    Form none = all;
    for (const Json& one : list_of(schema, "enum")) none = both(none, not_value(schema, one));
    unite(result, std::move(none));
  }
  for (const AtomSet& there : referred(schema, /*negative=*/true)) unite(result, form(there));
  if (find(schema, "allOf") != nullptr) {
    for (const Json& part : list_of(schema, "allOf")) unite(result, form(atoms(part, true)));
  }
  if (find(schema, "anyOf") != nullptr) {
    Form none = all;
    for (const Json& branch : list_of(schema, "anyOf")) none = both(none, form(atoms(branch, true)));
    unite(result, std::move(none));
  }
  if (const Json* inner = find(schema, "not")) unite(result, form(atoms(*inner)));
  for (const char* keyword : {"oneOf", "if", "dependentRequired", "dependentSchemas", "dependencies"}) {
    if (find(schema, keyword) != nullptr)
      unsupported(schema, keyword, "inside not, or a oneOf that needs it");
  }
  return silent(std::move(result));
}

// What fails the keywords of numbers, strings, arrays and objects.
Form SchemaReader::negated_parts(const Json& schema) {
  Form result;
  const NumberSpec numbers = number(schema);
  if (!numbers.multiples.empty()) unsupported(schema, "multipleOf", "inside not");
  if (numbers.integer) result.numbers.push_back({.fractional = true});
  if (numbers.min) result.numbers.push_back({.max = numbers.min, .max_excluded = !numbers.min_excluded});
  if (numbers.max) result.numbers.push_back({.min = numbers.max, .min_excluded = !numbers.max_excluded});
  const StringSpec strings = string(schema);
  if (strings.min > 0) result.strings.push_back({.max = strings.min - 1});
  if (strings.max != kUnbounded) result.strings.push_back({.min = strings.max + 1});
  for (StringSpec::Pattern pattern : strings.patterns) {
    pattern.negative = true;
    result.strings.push_back({.patterns = {pattern}});
  }
  const ArraySpec arrays = array(schema);
  if (arrays.unique != nullptr) unsupported(schema, "uniqueItems", "inside not, or a oneOf that needs it");
  if (arrays.min > 0) result.arrays.push_back({.max = arrays.min - 1});
  if (arrays.max != kUnbounded) result.arrays.push_back({.min = arrays.max + 1});
  for (const char* keyword :
       {"prefixItems", "contains", "additionalItems", "patternProperties", "additionalProperties",
        "propertyNames", "nullable", "unevaluatedProperties", "unevaluatedItems"}) {
    const Json* value = find(schema, keyword);
    if (value != nullptr && *value != Json(true))
      unsupported(schema, keyword, "inside not, or a oneOf that needs it");
  }
  if (const Json* items = find(schema, "items");
      items != nullptr && !(items->is_boolean() && items->get<bool>())) {
    if (items->is_array()) unsupported(schema, "items", "as a list inside not");
    // Some item does not hold.
    result.arrays.push_back({.contains = atoms(*items, true)});
  }
  const ObjectSpec objects = object(schema);
  if (objects.min > 0) result.objects.push_back({.max = objects.min - 1});
  if (objects.max != kUnbounded) result.objects.push_back({.min = objects.max + 1});
  for (const std::string& name : objects.required) {
    ObjectSpec absent;
    absent.groups.push_back({.names = {{name, {{nullptr, false}}}}});
    result.objects.push_back(std::move(absent));
  }
  if (find(schema, "properties") != nullptr) {
    for (const auto& [name, value] : object_of(schema, "properties").items()) {
      ObjectSpec failing;
      failing.required.push_back(name);
      failing.groups.push_back({.names = {{name, atoms(value, true)}}});
      result.objects.push_back(std::move(failing));
    }
  }
  return result;
}

Form SchemaReader::not_value(const Json& schema, const Json& constant) {
  Form result = Form::anything();
  if (constant.is_null()) result.null = false;
  if (constant.is_boolean()) (constant.get<bool>() ? result.yes : result.no) = false;
  if (constant.is_number()) {
    const Decimal number = Decimal::of(constant);
    result.numbers = {NumberSpec{.max = number, .max_excluded = true},
                      NumberSpec{.min = number, .min_excluded = true}};
  }
  if (constant.is_string()) {
    std::string exact = "^";
    for (const char c : constant.get_ref<const std::string&>()) {
      if (std::string_view("\\^$.|?*+()[]{}/-").find(c) != std::string_view::npos) exact += '\\';
      exact += c;
    }
    result.strings[0].patterns.push_back({.source = exact + "$", .negative = true});
  }
  if (constant.is_structured()) unsupported(schema, "const", "as a list or object inside not");
  return result;
}

}  // namespace qiao::constrain
