// What an answer's text must be: read from the spellings that clients send, and compiled.
#include <array>

#include "serve/chat_run.h"

namespace qiao::serve {
namespace {

constexpr size_t kMaxOutputChoices = 10'000;
using Kind = OutputFormat::Kind;

Json schema_of(const Json& value, const std::string& field) {
  if (value.is_string()) {  // vLLM's clients send its text
    try {
      return schema_of(parse_json(value.get_ref<const std::string&>(), field, {.max_depth = 64}), field);
    } catch (const Error& e) {
      throw ApiError(400, e.what(), field);
    }
  }
  if (!value.is_object() && !value.is_boolean())
    throw_bad_field(field, "expected a JSON Schema object, got {}", value.type_name());
  return value;
}

OutputFormat of_schema(const Json& value, const std::string& field) {
  OutputFormat format{.kind = Kind::kJsonSchema, .field = field};
  format.schema = schema_of(value, field);
  return format;
}

OutputFormat of_source(Kind kind, const Json& value, const std::string& field) {
  if (!value.is_string()) throw_bad_field(field, "expected a string, got {}", value.type_name());
  OutputFormat format{.kind = kind, .field = field};
  format.source = value.get<std::string>();
  return format;
}

OutputFormat of_choice(const Json& value, const std::string& field) {
  if (!value.is_array() || value.empty()) throw_bad_field(field, "expected a list of one or more strings");
  if (value.size() > kMaxOutputChoices)
    throw_bad_field(field, "has {} entries; at most {} are allowed", value.size(), kMaxOutputChoices);
  OutputFormat format{.kind = Kind::kChoice, .field = field};
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_string())
      throw_bad_field(fmt::format("{}[{}]", field, i), "expected a string, got {}", value[i].type_name());
    format.choices.push_back(value[i].get<std::string>());
  }
  return format;
}

OutputFormat of_object(const Json& value, const std::string& field) {
  if (!value.is_boolean()) throw_bad_field(field, "expected true or false, got {}", value.type_name());
  return {.kind = value.get<bool>() ? Kind::kJsonObject : Kind::kText, .field = field};
}

OutputFormat read_one(Kind kind, const Json& value, const std::string& field) {
  switch (kind) {
    case Kind::kText:
      return read_response_format(value, field);
    case Kind::kJsonObject:
      return of_object(value, field);
    case Kind::kJsonSchema:
      return of_schema(value, field);
    case Kind::kRegex:
    case Kind::kGrammar:
      return of_source(kind, value, field);
    case Kind::kChoice:
      return of_choice(value, field);
  }
  return {};
}

void check_schema_name(Fields& schema) {
  const std::string name = schema.required_text("name");
  if (name.empty() || name.size() > 64 ||
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") !=
          std::string::npos) {
    throw_bad_field(schema.full_name("name"), "{:?}: 1 to 64 letters, digits, '_' and '-' are expected",
                    name.substr(0, 80));
  }
}

}  // namespace

OutputFormat read_response_format(const Json& value, const std::string& field) {
  Fields inner(value, field + ".");
  const std::string type = inner.required_text("type");
  OutputFormat format{.field = field};
  if (type == "json_object") {
    const Json* schema = inner.find("schema");  // llama-server's
    format = schema != nullptr ? of_schema(*schema, field + ".schema")
                               : OutputFormat{.kind = Kind::kJsonObject, .field = field};
  } else if (type == "json_schema") {
    const Json* given = inner.find("json_schema");
    if (given == nullptr) throw_bad_field(field + ".json_schema", "is required");
    Fields schema(*given, field + ".json_schema.");
    check_schema_name(schema);
    schema.text("description");
    schema.flag("strict", false);  // the answer is held to the schema either way
    const Json* source = schema.find("schema");
    if (source == nullptr) throw_bad_field(field + ".json_schema.schema", "is required");
    schema.finish();
    format = of_schema(*source, field + ".json_schema.schema");
  } else if (type != "text") {
    throw ApiError(400,
                   fmt::format("{}.type: '{}' is not supported; text, json_object and json_schema are", field,
                               type.substr(0, 40)),
                   field + ".type", "unsupported_parameter");
  }
  inner.finish();
  return format;
}

OutputFormat read_output_format(Fields& fields) {
  struct Spelling {
    std::string_view name;
    Kind kind;  // kText: a response_format object
  };
  constexpr std::array<Spelling, 9> kSpellings = {{{"response_format", Kind::kText},
                                                   {"guided_json", Kind::kJsonSchema},
                                                   {"guided_regex", Kind::kRegex},
                                                   {"guided_grammar", Kind::kGrammar},
                                                   {"guided_choice", Kind::kChoice},
                                                   {"json_schema", Kind::kJsonSchema},
                                                   {"regex", Kind::kRegex},
                                                   {"grammar", Kind::kGrammar},
                                                   {"choice", Kind::kChoice}}};
  OutputFormat format;
  std::string first;
  const auto take = [&](OutputFormat other, const std::string& name) {
    if (other.kind == Kind::kText) return;
    if (format.kind != Kind::kText)
      throw_bad_field(name, "is not allowed together with {}: both say what the answer must be", first);
    format = std::move(other);
    first = name;
  };
  for (const auto& [name, kind] : kSpellings) {
    const Json* value = fields.find(name);
    // An empty grammar is llama-server's default: none.
    if (value == nullptr || (kind == Kind::kGrammar && *value == Json(""))) continue;
    take(read_one(kind, *value, std::string(name)), std::string(name));
  }
  if (const Json* outputs = fields.find("structured_outputs")) {
    Fields inner(*outputs, "structured_outputs.");
    constexpr std::array<Spelling, 5> kInner = {{{"json", Kind::kJsonSchema},
                                                 {"regex", Kind::kRegex},
                                                 {"grammar", Kind::kGrammar},
                                                 {"choice", Kind::kChoice},
                                                 {"json_object", Kind::kJsonObject}}};
    for (const auto& [name, kind] : kInner) {
      const Json* value = inner.find(name);
      if (value != nullptr) take(read_one(kind, *value, inner.full_name(name)), inner.full_name(name));
    }
    inner.ignore({"disable_fallback", "disable_any_whitespace"});
    inner.refuse({"whitespace_pattern", "structural_tag", "disable_additional_properties"},
                 "is not supported");
    inner.finish();
  }
  fields.ignore({"guided_decoding_backend"});
  fields.refuse({"guided_whitespace_pattern"}, "is not supported");
  return format;
}

constrain::Structure output_structure(const OutputFormat& format) {
  using constrain::Structure;
  switch (format.kind) {
    case Kind::kText:
      break;
    case Kind::kJsonObject:
      return Structure::json({{"type", "object"}});
    case Kind::kJsonSchema:
      return Structure::json(format.schema);
    case Kind::kRegex:
      return Structure::regex(format.source);
    case Kind::kGrammar:
      return Structure::grammar(format.source);
    case Kind::kChoice: {
      std::vector<Structure> texts;
      for (const std::string& choice : format.choices) texts.push_back(Structure::literal(choice));
      return Structure::choice(std::move(texts));
    }
  }
  return Structure::free_text({});
}

std::shared_ptr<constrain::CompiledGrammar> compile_output_format(ServeContext& context,
                                                                  const OutputFormat& format) {
  if (format.kind == Kind::kText) return nullptr;
  const std::string source =
      fmt::format("format {}\n{}\n{}\n{}", static_cast<int>(format.kind), dump_json(format.schema),
                  format.source, dump_json(Json(format.choices)));
  return context.grammars.get(source, [&] {
    switch (format.kind) {
      case Kind::kText:
        break;
      case Kind::kJsonObject:
        return constrain::compile_json_object(constrain::JsonStyle::generation());
      case Kind::kJsonSchema:
        return constrain::compile_json_schema(format.schema, format.field,
                                              constrain::JsonStyle::generation());
      case Kind::kRegex:
        return constrain::compile_regex(format.source, format.field);
      case Kind::kGrammar:
        return constrain::compile_grammar(format.source, format.field);
      case Kind::kChoice:
        return constrain::compile_choice(format.choices, format.field);
    }
    return std::shared_ptr<constrain::CompiledGrammar>();
  });
}

}  // namespace qiao::serve
