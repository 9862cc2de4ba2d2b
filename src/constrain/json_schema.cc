#include "constrain/json_schema.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"
#include "base/suggest.h"

namespace qiao::constrain {
namespace {

constexpr std::string_view kAnnotations[] = {
    "title", "description", "default", "examples", "example", "$schema", "$id", "id", "$comment",
    "deprecated", "readOnly", "writeOnly", "$anchor", "$defs", "definitions", "contentEncoding",
    "contentMediaType", "contentSchema", "$vocabulary", "nullable", "$dynamicAnchor", "$recursiveAnchor",
    // OpenAPI, hyper-schema and editors
    "xml", "externalDocs", "discriminator", "links", "base", "markdownDescription", "enumDescriptions",
    "markdownEnumDescriptions", "enumNames", "defaultSnippets", "deprecationMessage", "doNotSuggest",
    "errorMessage", "patternErrorMessage", "propertyOrder"};
constexpr std::string_view kConstraints[] = {"type",
                                             "enum",
                                             "const",
                                             "allOf",
                                             "anyOf",
                                             "oneOf",
                                             "not",
                                             "if",
                                             "then",
                                             "else",
                                             "$ref",
                                             "$dynamicRef",
                                             "$recursiveRef",
                                             "properties",
                                             "required",
                                             "additionalProperties",
                                             "patternProperties",
                                             "propertyNames",
                                             "minProperties",
                                             "maxProperties",
                                             "dependentRequired",
                                             "dependentSchemas",
                                             "dependencies",
                                             "items",
                                             "prefixItems",
                                             "additionalItems",
                                             "minItems",
                                             "maxItems",
                                             "contains",
                                             "minContains",
                                             "maxContains",
                                             "uniqueItems",
                                             "unevaluatedProperties",
                                             "unevaluatedItems",
                                             "minLength",
                                             "maxLength",
                                             "pattern",
                                             "format",
                                             "minimum",
                                             "maximum",
                                             "exclusiveMinimum",
                                             "exclusiveMaximum",
                                             "multipleOf"};

bool has(const Json& schema, const char* keyword) { return schema.find(keyword) != schema.end(); }

// Where `wanted` stands below `at`, as a JSON pointer.
bool find_place(const Json& at, const Json* wanted, std::string& path) {
  if (&at == wanted) return true;
  const size_t length = path.size();
  if (at.is_object()) {
    for (const auto& [key, child] : at.items()) {
      path += '/';
      path += printable(key, 40);
      if (find_place(child, wanted, path)) return true;
      path.erase(length);
    }
  } else if (at.is_array()) {
    for (size_t i = 0; i < at.size(); ++i) {
      path += fmt::format("/{}", i);
      if (find_place(at[i], wanted, path)) return true;
      path.erase(length);
    }
  }
  return false;
}

// How many values there are in `at`, itself included, as far as that matters.
size_t count_values(const Json& at, size_t limit) {
  size_t count = 1;
  if (!at.is_structured()) return count;
  for (const Json& child : at) {
    count += count_values(child, limit);
    if (count > limit) break;
  }
  return count;
}

}  // namespace

SchemaReader::SchemaReader(const Json& root, std::string_view where) : root_(root), where_(where) {
  if (!root.is_object() && !root.is_boolean()) {
    throw_error(ErrorKind::kInvalidInput, "{}: expected a JSON Schema: an object, true or false", where);
  }
  if (count_values(root, kMaxValues) > kMaxValues) {
    throw_error(ErrorKind::kTooLarge, "{}: a schema of over {} values, keywords and properties", where,
                kMaxValues);
  }
  if (root.is_object()) {
    check_dialect(root);
    index_ids(root, "", 0);
  }
}

// Other dialects may mean other things by the same words.
void SchemaReader::check_dialect(const Json& root) {
  const auto dialect = root.find("$schema");
  if (dialect == root.end()) return;
  const std::string name = dialect->is_string() ? dialect->get<std::string>() : std::string();
  const auto has_part = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  if (!has_part("json-schema.org/")) {
    unsupported(root, "$schema", fmt::format("{} is none of JSON Schema's own dialects", quote_text(name)));
  }
  digits_only_ = has_part("draft-03") || has_part("draft-04");
  ref_alone_ = digits_only_ || has_part("draft-06") || has_part("draft-07");
}

std::string SchemaReader::place_of(const Json& schema) const {
  std::string path;
  if (!find_place(root_, &schema, path)) path.clear();
  return fmt::format("{}: #{}", where_, path);
}

void SchemaReader::unsupported(const Json& schema, std::string_view keyword, std::string_view why) const {
  throw_error(ErrorKind::kUnsupported, "{}: keyword {} is not supported{}{}", place_of(schema),
              quote_text(keyword), why.empty() ? "" : ": ", why);
}

void SchemaReader::invalid(const Json& schema, std::string_view keyword, std::string_view expected) const {
  throw_error(ErrorKind::kInvalidInput, "{}: keyword {}: expected {}", place_of(schema), quote_text(keyword),
              expected);
}

AtomSet SchemaReader::atoms(const Json& schema, bool negative) {
  if (schema.is_boolean()) {
    if (schema.get<bool>() != negative) return {};
    return {{nullptr, false}};
  }
  if (schema.is_object() && schema.empty() && !negative) return {};
  return {{&schema, negative}};
}

const Json& SchemaReader::made(Json schema) { return made_.emplace_back(std::move(schema)); }

Form SchemaReader::form(const AtomSet& set) {
  Form result = Form::anything();
  for (const Atom& atom : set) result = both(result, form(atom));
  return result;
}

Form SchemaReader::form(const Atom& atom) {
  if (atom.schema == nullptr) return {};
  if (!atom.schema->is_object() && !atom.schema->is_boolean()) {
    throw_error(ErrorKind::kInvalidInput, "{}: expected a schema: an object, true or false",
                place_of(*atom.schema));
  }
  if (atom.schema->is_boolean()) return atom.schema->get<bool>() != atom.negative ? Form::anything() : Form{};
  // Schemas that are referred to from many places are read once: else twice two makes 2^n of n levels.
  const std::pair key(atom, collecting_ > 0);
  if (const auto known = forms_.find(key); known != forms_.end()) return known->second;
  if (!open_.insert(atom).second) {
    throw_error(ErrorKind::kInvalidInput, "{}: the schema refers to itself without end (a cycle of $ref)",
                place_of(*atom.schema));
  }
  if (++depth_ > kMaxDepth) {
    throw_error(ErrorKind::kTooLarge, "{}: schemas inside schemas ($ref, allOf, …) deeper than {}", where_,
                kMaxDepth);
  }
  Form result;
  try {
    check_keywords(*atom.schema);
    result = atom.negative ? negative(*atom.schema) : positive(*atom.schema);
  } catch (...) {
    open_.erase(atom);
    --depth_;
    throw;
  }
  open_.erase(atom);
  --depth_;
  if (kept_alternatives_ + result.size() <= kMaxKeptAlternatives) {
    kept_alternatives_ += result.size();
    forms_.emplace(key, result);
  }
  return result;
}

void SchemaReader::check_keywords(const Json& schema) const {
  for (const auto& member : schema.items()) {
    const std::string& key = member.key();
    const auto is = [&](std::string_view name) { return name == key; };
    if (std::any_of(std::begin(kAnnotations), std::end(kAnnotations), is) || key.starts_with("x-")) continue;
    if (std::any_of(std::begin(kConstraints), std::end(kConstraints), is)) continue;
    std::vector<std::string> names(std::begin(kConstraints), std::end(kConstraints));
    throw_error(ErrorKind::kUnsupported, "{}: keyword {} is not supported{}", place_of(schema),
                quote_text(key), did_you_mean(key, names));
  }
}

Form SchemaReader::positive(const Json& schema) {
  if (ref_alone_ && has(schema, "$ref")) {
    const auto ref = schema.find("$ref");
    if (!ref->is_string()) invalid(schema, "$ref", "a string");
    return form(atoms(target(schema, "$ref", ref->get_ref<const std::string&>())));
  }
  const bool collects = has(schema, "unevaluatedProperties") || has(schema, "unevaluatedItems");
  collecting_ += collects;
  Form result = Form::anything();
  result.numbers[0] = number(schema);
  result.strings[0] = string(schema);
  result.arrays[0] = array(schema);
  result.objects[0] = object(schema);
  if (const auto type = schema.find("type"); type != schema.end()) {
    Form allowed = types(schema, *type);
    if (const auto nullable = schema.find("nullable"); nullable != schema.end() && *nullable == Json(true)) {
      allowed.null = true;
    }
    result = both(result, allowed);
  } else {
    result = both(result, Form::anything());  // drops what cannot be
  }
  result = with_dependents(schema, combined(schema, std::move(result)));
  collecting_ -= collects;
  return with_unevaluated(schema, std::move(result));
}

// allOf, anyOf, oneOf, not, if, $ref, enum, const on top of `result`.
Form SchemaReader::combined(const Json& schema, Form result) {
  if (const auto constant = schema.find("const"); constant != schema.end())
    result = both(result, value(*constant));
  if (has(schema, "enum")) {
    Form values;
    std::vector<std::string> texts;
    for (const Json& one : list_of(schema, "enum")) {
      if (one.is_string()) {
        texts.push_back(one.get_ref<const std::string&>());
      } else {
        unite(values, value(one));
      }
    }
    if (!texts.empty()) values.strings.push_back({.literals = std::move(texts)});
    result = both(result, values);
  }
  for (const AtomSet& there : referred(schema, /*negative=*/false)) result = both(result, form(there));
  if (has(schema, "allOf")) {
    for (const Json& part : list_of(schema, "allOf")) result = both(result, form(atoms(part)));
  }
  if (has(schema, "anyOf")) result = both(result, any_of(schema));
  if (has(schema, "oneOf")) result = both(result, one_of(schema, list_of(schema, "oneOf")));
  if (const auto no = schema.find("not"); no != schema.end()) result = both(result, form(atoms(*no, true)));
  if (const auto condition = schema.find("if"); condition != schema.end()) {
    const auto then = schema.find("then"), otherwise = schema.find("else");
    if (then != schema.end() || otherwise != schema.end() || collecting_ > 0) {
      Form yes = form(atoms(*condition));
      if (then != schema.end()) yes = both(yes, form(atoms(*then)));
      Form no = form(atoms(*condition, true));
      if (otherwise != schema.end()) no = both(no, form(atoms(*otherwise)));
      unite(yes, std::move(no));
      result = both(result, yes);
    }
  }
  return result;
}

// dependentRequired, dependentSchemas and draft 7's dependencies: the property is absent, or what it brings
// holds.
Form SchemaReader::with_dependents(const Json& schema, Form result) {
  for (const char* keyword : {"dependentRequired", "dependentSchemas", "dependencies"}) {
    if (!has(schema, keyword)) continue;
    for (const auto& [name, brought] : object_of(schema, keyword).items()) {
      Form absent = Form::anything();
      absent.objects[0].groups.push_back({.names = {{name, {{nullptr, false}}}}});
      Form present{.objects = {ObjectSpec{.required = {name}}}};
      if (brought.is_array()) {
        for (const Json& other : brought) {
          if (!other.is_string()) invalid(schema, keyword, "lists of names");
          present.objects[0].required.push_back(other.get<std::string>());
        }
      } else {
        present = both(present, form(atoms(brought)));
      }
      unite(absent, std::move(present));
      result = both(result, absent);
    }
  }
  return result;
}

Form SchemaReader::types(const Json& schema, const Json& names) {
  Form result;
  const auto add = [&](const Json& name) {
    const std::string text = name.is_string() ? name.get<std::string>() : "";
    if (text == "null") {
      result.null = true;
    } else if (text == "boolean") {
      result.yes = result.no = true;
    } else if (text == "number") {
      result.numbers = {NumberSpec{}};
    } else if (text == "integer") {
      if (result.numbers.empty()) result.numbers.push_back({.integer = true, .digits_only = digits_only_});
    } else if (text == "string") {
      result.strings = {StringSpec{}};
    } else if (text == "array") {
      result.arrays = {ArraySpec{}};
    } else if (text == "object") {
      result.objects = {ObjectSpec{}};
    } else {
      invalid(schema, "type", "null, boolean, number, integer, string, array, object, or a list of them");
    }
  };
  if (names.is_array()) {
    for (const Json& name : names) add(name);
  } else {
    add(names);
  }
  return result;
}

Form SchemaReader::value(const Json& constant) {
  Form result;
  if (constant.is_null()) result.null = true;
  if (constant.is_boolean()) (constant.get<bool>() ? result.yes : result.no) = true;
  if (constant.is_number()) {
    const Decimal number = Decimal::of(constant);
    result.numbers.push_back({.min = number, .max = number});
  }
  if (constant.is_string()) result.strings.push_back({.literals = {{constant.get<std::string>()}}});
  if (constant.is_array()) {
    ArraySpec spec;
    for (const Json& item : constant) spec.prefix.push_back(atoms(made(Json{{"const", item}})));
    spec.min = spec.max = static_cast<uint32_t>(constant.size());
    result.arrays.push_back(std::move(spec));
  }
  if (constant.is_object()) {
    ObjectSpec::Group group{.additional = {{nullptr, false}}};
    ObjectSpec spec;
    for (const auto& [key, item] : constant.items()) {
      group.names.emplace_back(key, atoms(made(Json{{"const", item}})));
      spec.required.push_back(key);
    }
    spec.groups.push_back(std::move(group));
    result.objects.push_back(std::move(spec));
  }
  return result;
}

}  // namespace qiao::constrain
