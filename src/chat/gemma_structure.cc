#include "chat/gemma_structure.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string_view>

#include "base/error.h"

namespace qiao::chat {
namespace {

using constrain::Structure;

constexpr int kMaxGemmaDepth = 32;

class GemmaWriter {
 public:
  GemmaWriter(const std::string& quote, const Json& root, const std::string& where)
      : quote_(quote), root_(root), where_(where) {}

  Structure value(const Json& schema, int depth) const {
    if (depth > kMaxGemmaDepth)
      throw_error(ErrorKind::kTooLarge, "{}: schema nested deeper than {} levels", where_, kMaxGemmaDepth);
    if (!schema.is_object())
      throw_error(ErrorKind::kUnsupported, "{}: schema true or false is not supported", where_);
    if (const auto ref = schema.find("$ref"); ref != schema.end()) return value(resolve(*ref), depth + 1);
    for (const char* name : {"anyOf", "oneOf"}) {
      const auto found = schema.find(name);
      if (found == schema.end() || !found->is_array()) continue;
      allow(schema, {name});
      std::vector<Structure> either;
      for (const Json& one : *found) either.push_back(value(one, depth + 1));
      return Structure::choice(std::move(either));
    }
    if (schema.contains("enum") || schema.contains("const")) {
      allow(schema, {"type", "enum", "const"});
      std::vector<Structure> either;
      const Json constants = schema.contains("enum") ? schema["enum"] : Json::array({schema["const"]});
      for (const Json& one : constants) either.push_back(constant(one));
      return Structure::choice(std::move(either));
    }
    const Json type = schema.value("type", Json());
    if (type.is_array()) {
      std::vector<Structure> either;
      for (const Json& one : type) {
        Json single = schema;
        single["type"] = one;
        either.push_back(value(single, depth + 1));
      }
      return Structure::choice(std::move(either));
    }
    if (type == "string") return text(schema);
    if (type == "array") return array(schema, depth);
    if (type == "object") return object(schema, depth);
    if (type == "number" || type == "integer" || type == "boolean" || type == "null")
      return Structure::json(schema);
    throw_error(ErrorKind::kUnsupported, "{}: a property without a type is not supported with this model",
                where_);
  }

  Structure object(const Json& schema, int depth) const {
    allow(schema, {"type", "properties", "required", "additionalProperties"});
    // {first,second,…}: each list of optional keys has a comma before all but the first.
    const Json properties = schema.value("properties", Json::object());
    const Json required = schema.value("required", Json::array());
    std::vector<Structure> keys;
    std::vector<bool> needed;
    for (const auto& [name, property] : properties.items()) {
      if (name.find_first_of("{}:,\" ") != std::string::npos || name.empty())
        throw_error(ErrorKind::kUnsupported, "{}: property '{}' cannot be written by this model", where_,
                    name.substr(0, 60));
      std::vector<Structure> parts;
      parts.push_back(Structure::literal(name + ":"));
      parts.push_back(value(property, depth + 1));
      keys.push_back(Structure::sequence(std::move(parts)));
      needed.push_back(std::find(required.begin(), required.end(), Json(name)) != required.end());
    }
    // The first key that is written has no comma before it: one branch for each that may be the first.
    const auto followers = [&](size_t from) {
      std::vector<Structure> rest;
      for (size_t i = from; i < keys.size(); ++i) {
        std::vector<Structure> pair;
        pair.push_back(Structure::literal(","));
        pair.push_back(keys[i]);
        Structure with_comma = Structure::sequence(std::move(pair));
        rest.push_back(needed[i] ? std::move(with_comma) : Structure::repeat(std::move(with_comma), 0, 1));
      }
      return Structure::sequence(std::move(rest));
    };
    std::vector<Structure> first;
    bool may_be_empty = true;
    for (size_t i = 0; i < keys.size() && may_be_empty; ++i) {
      std::vector<Structure> branch;
      branch.push_back(keys[i]);
      branch.push_back(followers(i + 1));
      first.push_back(Structure::sequence(std::move(branch)));
      may_be_empty = !needed[i];
    }
    if (may_be_empty) first.push_back(Structure::literal(""));
    std::vector<Structure> parts;
    parts.push_back(Structure::literal("{"));
    parts.push_back(Structure::choice(std::move(first)));
    parts.push_back(Structure::literal("}"));
    return Structure::sequence(std::move(parts));
  }

 private:
  Structure quoted(Structure inside) const {
    std::vector<Structure> parts;
    parts.push_back(Structure::token(quote_));
    parts.push_back(std::move(inside));
    parts.push_back(Structure::token(quote_));
    return Structure::sequence(std::move(parts));
  }

  Structure text(const Json& schema) const {
    allow(schema, {"type", "minLength", "maxLength"});
    if (!schema.contains("minLength") && !schema.contains("maxLength"))
      return quoted(Structure::free_text({quote_}));
    const auto length = [&](const char* name) {
      const Json& count = schema[name];
      if (!count.is_number_integer() || count.get<int64_t>() < 0)
        throw_error(ErrorKind::kInvalidInput, "{}: {} must be an integer of 0 or more", where_, name);
      return std::to_string(count.get<int64_t>());
    };
    const std::string least = schema.contains("minLength") ? length("minLength") : "0";
    const std::string most = schema.contains("maxLength") ? length("maxLength") : "";
    return quoted(Structure::regex("[^<]{" + least + "," + most + "}"));
  }

  Structure array(const Json& schema, int depth) const {
    allow(schema, {"type", "items", "minItems", "maxItems"});
    if (!schema.contains("items"))
      throw_error(ErrorKind::kUnsupported, "{}: an array without items is not supported with this model",
                  where_);
    const Structure item = value(schema["items"], depth + 1);
    const int least = std::clamp(schema.value("minItems", 0), 0, 10'000);
    const int most = schema.value("maxItems", -1);
    std::vector<Structure> more;
    more.push_back(Structure::literal(","));
    more.push_back(item);
    std::vector<Structure> list;
    list.push_back(item);
    list.push_back(Structure::repeat(Structure::sequence(std::move(more)), std::max(least - 1, 0),
                                     most < 0 ? -1 : std::max(most - 1, 0)));
    Structure items = Structure::sequence(std::move(list));
    if (most == 0) {
      items = Structure::literal("");
    } else if (least == 0) {
      items = Structure::repeat(std::move(items), 0, 1);
    }
    std::vector<Structure> parts;
    parts.push_back(Structure::literal("["));
    parts.push_back(std::move(items));
    parts.push_back(Structure::literal("]"));
    return Structure::sequence(std::move(parts));
  }

  Structure constant(const Json& value) const {
    if (value.is_string()) return quoted(Structure::literal(value.get<std::string>()));
    if (value.is_structured())
      throw_error(ErrorKind::kUnsupported, "{}: a list or object in enum is not supported with this model",
                  where_);
    return Structure::literal(dump_json(value));
  }

  const Json& resolve(const Json& ref) const {
    const std::string path = ref.is_string() ? ref.get<std::string>() : "";
    if (path.starts_with("#/")) {
      try {
        return root_.at(Json::json_pointer(path.substr(1)));
      } catch (const Json::exception&) {
      }
    }
    throw_error(ErrorKind::kInvalidInput, "{}: $ref '{}' leads nowhere", where_, path.substr(0, 80));
  }

  // Every other keyword that says something of the value is refused.
  void allow(const Json& schema, std::initializer_list<std::string_view> names) const {
    constexpr std::array<std::string_view, 9> kNotes = {"title",      "description", "default",
                                                        "examples",   "$comment",    "nullable",
                                                        "deprecated", "$defs",       "definitions"};
    for (const auto& [name, value] : schema.items()) {
      if (std::find(names.begin(), names.end(), name) != names.end() ||
          std::find(kNotes.begin(), kNotes.end(), name) != kNotes.end() || name == "$schema" || name == "$id")
        continue;
      throw_error(ErrorKind::kUnsupported, "{}: keyword '{}' is not supported in arguments of this model",
                  where_, name.substr(0, 60));
    }
  }

  const std::string& quote_;
  const Json& root_;
  const std::string& where_;
};

}  // namespace

constrain::Structure gemma_structure(const std::string& quote, const Json& parameters,
                                     const std::string& where) {
  return GemmaWriter(quote, parameters, where).object(parameters, 0);
}

}  // namespace qiao::chat
