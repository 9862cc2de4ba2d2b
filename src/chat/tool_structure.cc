// What an answer with calls must look like, from the form's spelling and the tools' schemas.
#include <algorithm>
#include <array>

#include "base/error.h"
#include "chat/chat_format.h"
#include "chat/gemma_structure.h"
#include "chat/tool_schema.h"

namespace qiao::chat {
namespace {

using constrain::Structure;

// A marker's text: what may be a control token of the vocabulary ("[TOOL_CALLS]", "<|tool_call>") stands
// apart from the rest.
void add_marker(std::string_view text, std::vector<Structure>& parts) {
  std::string plain;
  const auto flush = [&] {
    if (!plain.empty()) parts.push_back(Structure::literal(std::exchange(plain, {})));
  };
  while (!text.empty()) {
    const char close = text.front() == '<' ? '>' : text.front() == '[' ? ']' : '\0';
    const size_t end = close == '\0' ? std::string_view::npos : text.find(close);
    const bool whole = end != std::string_view::npos && end > 1 &&
                       text.substr(0, end).find_first_of(" \n=\"{") == std::string_view::npos;
    if (whole) {
      flush();
      parts.push_back(Structure::token(std::string(text.substr(0, end + 1))));
      text.remove_prefix(end + 1);
    } else {
      plain += text.front();
      text.remove_prefix(1);
    }
  }
  flush();
}

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \n");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \n") + 1 - begin));
}

// The schema of one property, with the definitions that it may refer to.
Json property_schema(const Json& parameters, const Json& property) {
  if (!property.is_object()) return property;
  Json schema = property;
  for (const char* name : {"$defs", "definitions"}) {
    if (parameters.contains(name) && !schema.contains(name)) schema[name] = parameters[name];
  }
  return schema;
}

// Where arguments are not one JSON text, their names must be the properties'.
void check_plain_object(const Json& parameters, const std::string& where) {
  constexpr std::array<std::string_view, 13> kKnown = {
      "type",    "properties",  "required", "additionalProperties",
      "$defs",   "definitions", "title",    "description",
      "$schema", "$id",         "default",  "examples",
      "$comment"};
  for (const auto& [name, value] : parameters.items()) {
    if (name == "type" && value != Json("object"))
      throw_error(ErrorKind::kInvalidInput, "{}: type must be \"object\"", where);
    if (std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end()) {
      throw_error(
          ErrorKind::kUnsupported,
          "{}: keyword '{}' at the top of parameters is not supported with this model, which does not "
          "write arguments as JSON",
          where, name.substr(0, 60));
    }
  }
}

bool is_required(const Json& parameters, const std::string& name) {
  const auto required = parameters.find("required");
  return required != parameters.end() && required->is_array() &&
         std::find(required->begin(), required->end(), Json(name)) != required->end();
}

Structure tag_value(const CallForm& form, const Json& parameters, const std::string& key,
                    const Json& property) {
  if (!is_bare_text(parameters, key)) return Structure::json(property_schema(parameters, property));
  const Json choices = bare_choices(property);
  if (choices.empty()) return Structure::free_text({trimmed(form.value_end)});
  std::vector<Structure> texts;
  for (const Json& choice : choices) texts.push_back(Structure::literal(choice.get<std::string>()));
  return Structure::choice(std::move(texts));
}

Structure tag_arguments(const CallForm& form, const Json& parameters, const std::string& where) {
  check_plain_object(parameters, where);
  std::vector<Structure> parts;
  const Json properties = parameters.value("properties", Json::object());
  for (const auto& [key, property] : properties.items()) {
    if (key.empty() || key.find_first_of("<>\"\n") != std::string::npos)
      throw_error(ErrorKind::kUnsupported, "{}: property '{}' cannot be written by this model", where,
                  key.substr(0, 60));
    const bool text = is_bare_text(parameters, key);
    std::vector<Structure> tag;
    add_marker(form.key_begin + key + (text && !form.text_key_end.empty() ? form.text_key_end : form.key_end),
               tag);
    tag.push_back(tag_value(form, parameters, key, property));
    add_marker(form.value_end, tag);
    Structure whole = Structure::sequence(std::move(tag));
    parts.push_back(is_required(parameters, key) ? std::move(whole)
                                                 : Structure::repeat(std::move(whole), 0, 1));
  }
  return Structure::sequence(std::move(parts));
}

Structure call_structure(const CallForm& form, const Json& function, const std::string& where) {
  const Json parameters = parameters_of(function);
  const auto name = function["name"].get<std::string>();
  std::vector<Structure> parts;
  add_marker(form.begin, parts);
  switch (form.body) {
    case CallForm::Body::kCallObject:
    case CallForm::Body::kCallList:
      parts.push_back(Structure::literal(
          fmt::format("{{\"name\": {}, \"{}\": ", dump_json(Json(name)), form.arguments_key)));
      parts.push_back(Structure::json(parameters));
      parts.push_back(Structure::literal("}"));
      break;
    case CallForm::Body::kJson:
      parts.push_back(Structure::literal(name));
      add_marker(form.name_end, parts);
      parts.push_back(Structure::json(parameters));
      break;
    case CallForm::Body::kTags:
      parts.push_back(Structure::literal(name));
      add_marker(form.name_end, parts);
      parts.push_back(tag_arguments(form, parameters, where));
      break;
    case CallForm::Body::kGemma:
      check_plain_object(parameters, where);
      parts.push_back(Structure::literal(name));
      parts.push_back(gemma_structure(form.quote, parameters, where));
      break;
  }
  add_marker(form.end, parts);
  return Structure::sequence(std::move(parts));
}

// Any text that does not begin as a bare call does; free text of which nothing is asked otherwise.
Structure text_besides_bare_call(const std::string& begin) {
  // Proper prefixes of `begin`, and texts that leave it at some byte.
  std::string pattern;
  std::string escaped;
  for (const char c : begin) {
    const std::string one = c == '"' ? "\"" : fmt::format("\\{}", c);
    const bool letter = c >= 'a' && c <= 'z';
    const std::string literal = letter || c == '"' ? std::string(1, c) : one;
    pattern += fmt::format("{}(?:[^{}][\\s\\S]*)?|", escaped, literal);
    escaped += literal;
  }
  pattern.pop_back();
  return Structure::regex("(?:" + pattern + ")");
}

bool is_any_text(const Structure& structure) {
  return structure.kind == Structure::Kind::kFreeText && structure.stops.empty();
}

}  // namespace

Structure tool_structure(const ChatFormat& format, const Json& tools, std::string_view tools_field,
                         const ToolChoice& choice, bool parallel, Structure text) {
  const CallForm& form = format.form;
  std::vector<Structure> calls;
  for (size_t i = 0; i < tools.size(); ++i) {
    const Json& function = tools[i]["function"];
    if (choice.kind == ToolChoice::Kind::kNamed && function["name"] != choice.name) continue;
    calls.push_back(
        call_structure(form, function, fmt::format("{}[{}].function.parameters", tools_field, i)));
  }
  const Structure call = calls.size() == 1 ? calls.front() : Structure::choice(std::move(calls));
  std::vector<Structure> parts;
  // Some models begin with a line break; free text has it otherwise.
  if (choice.kind != ToolChoice::Kind::kAuto || !is_any_text(text) || form.bare)
    parts.push_back(Structure::regex("\\n{0,2}"));
  add_marker(form.begin_all, parts);
  if (form.body == CallForm::Body::kCallList) parts.push_back(Structure::literal("["));
  const bool several = parallel && format.several_calls && choice.kind != ToolChoice::Kind::kNamed;
  if (several && form.separator.find_first_not_of(" \n") == std::string::npos) {
    std::vector<Structure> one;  // written once: each copy of a call's schema is compiled
    one.push_back(call);
    one.push_back(Structure::repeat(Structure::literal(form.separator), 0, 1));
    parts.push_back(Structure::repeat(Structure::sequence(std::move(one)), 1, -1));
  } else {
    parts.push_back(call);
    if (several) {
      std::vector<Structure> more;
      add_marker(form.separator, more);
      more.push_back(call);
      parts.push_back(Structure::repeat(Structure::sequence(std::move(more)), 0, -1));
    }
  }
  if (form.body == CallForm::Body::kCallList) parts.push_back(Structure::literal("]"));
  add_marker(form.end_all, parts);
  Structure all = Structure::sequence(std::move(parts));
  if (choice.kind == ToolChoice::Kind::kRequired || choice.kind == ToolChoice::Kind::kNamed) return all;

  if (!is_any_text(text)) {
    std::vector<Structure> either;
    either.push_back(std::move(text));
    either.push_back(std::move(all));
    return Structure::choice(std::move(either));
  }
  if (form.bare) {
    std::vector<Structure> either;
    either.push_back(text_besides_bare_call("{\"name\""));
    either.push_back(std::move(all));
    return Structure::choice(std::move(either));
  }
  std::vector<Structure> answer;
  answer.push_back(Structure::free_text({std::string(form.marker())}));
  answer.push_back(Structure::repeat(std::move(all), 0, 1));
  return Structure::sequence(std::move(answer));
}

Structure with_thoughts(const ChatFormat& format, Thoughts thoughts, Structure answer) {
  if (thoughts == Thoughts::kNone) return answer;
  std::vector<Structure> parts;
  if (thoughts == Thoughts::kMaybe) {
    parts.push_back(Structure::regex("\\n{0,2}"));
    add_marker(format.think_begin, parts);
  }
  parts.push_back(Structure::free_text({format.think_end}));
  add_marker(format.think_end, parts);
  parts.push_back(Structure::regex("\\n{0,2}"));
  if (thoughts == Thoughts::kMaybe) {
    Structure before = Structure::repeat(Structure::sequence(std::move(parts)), 0, 1);
    parts.clear();
    parts.push_back(std::move(before));
  }
  parts.push_back(std::move(answer));
  return Structure::sequence(std::move(parts));
}

}  // namespace qiao::chat
