#include "chat/tool_schema.h"

#include <algorithm>
#include <array>

namespace qiao::chat {

const Json* find_function(const Json& tools, std::string_view name) {
  for (const Json& tool : tools) {
    const auto function = tool.find("function");
    if (function != tool.end() && function->value("name", "") == name) return &*function;
  }
  return nullptr;
}

Json parameters_of(const Json& function) {
  Json parameters = Json::object();
  if (const auto found = function.find("parameters"); found != function.end() && found->is_object())
    parameters = *found;
  if (parameters.empty()) {
    return {{"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}};
  }
  if (!parameters.contains("type") && parameters.contains("properties")) parameters["type"] = "object";
  // What a tool does not name it does not take: without this any other argument would be valid.
  if (parameters.contains("properties") && !parameters.contains("additionalProperties") &&
      !parameters.contains("patternProperties") && !parameters.contains("unevaluatedProperties") &&
      !parameters.contains("allOf") && !parameters.contains("anyOf") && !parameters.contains("oneOf") &&
      !parameters.contains("$ref"))
    parameters["additionalProperties"] = false;
  return parameters;
}

Json bare_choices(const Json& schema) {
  if (!schema.is_object()) return Json::array();
  Json choices = Json::array();
  if (const auto found = schema.find("enum"); found != schema.end() && found->is_array()) {
    choices = *found;
  } else if (const auto constant = schema.find("const"); constant != schema.end()) {
    choices = Json::array({*constant});
  }
  const bool texts = std::all_of(choices.begin(), choices.end(), [](const Json& choice) {
    return choice.is_string() &&
           choice.get_ref<const std::string&>().find_first_of("<>\n") == std::string::npos;
  });
  return texts ? choices : Json::array();
}

bool is_bare_text(const Json& parameters, std::string_view key) {
  const auto properties = parameters.find("properties");
  if (properties == parameters.end() || !properties->is_object()) return true;
  const auto found = properties->find(key);
  if (found == properties->end()) return true;
  if (!bare_choices(*found).empty()) return true;
  if (!found->is_object() || found->value("type", Json()) != Json("string")) return false;
  constexpr std::array<std::string_view, 7> kSaysNothing = {"type",     "title",    "description", "default",
                                                            "examples", "$comment", "deprecated"};
  for (const auto& [name, value] : found->items()) {
    if (std::find(kSaysNothing.begin(), kSaysNothing.end(), name) == kSaysNothing.end()) return false;
  }
  return true;
}

}  // namespace qiao::chat
