// OpenAI's tools and tool_choice, checked.
#include <set>

#include "serve/chat_run.h"

namespace qiao::serve {
namespace {

constexpr size_t kMaxToolName = 64;

bool is_tool_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxToolName &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") ==
             std::string_view::npos;
}

}  // namespace

void check_tools(const Json& tools, const std::string& field) {
  if (!tools.is_array()) throw_bad_field(field, "expected a list of tools, got {}", tools.type_name());
  if (tools.size() > kMaxTools)
    throw_bad_field(field, "has {} entries; at most {} are allowed", tools.size(), kMaxTools);
  std::set<std::string> names;
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string path = fmt::format("{}[{}].", field, i);
    Fields tool(tools[i], path);
    const std::string type = tool.required_text("type");
    if (type != "function") {
      throw ApiError(400, fmt::format("{}type: '{}' is not supported; function is", path, type.substr(0, 40)),
                     path + "type", "unsupported_parameter");
    }
    const Json* given = tool.find("function");
    if (given == nullptr) throw_bad_field(path + "function", "is required");
    tool.finish();
    Fields function(*given, path + "function.");
    const std::string name = function.required_text("name");
    if (!is_tool_name(name)) {
      throw_bad_field(path + "function.name", "{:?}: 1 to {} letters, digits, '_' and '-' are expected",
                      name.substr(0, 80), kMaxToolName);
    }
    if (!names.insert(name).second) throw_bad_field(path + "function.name", "'{}' names two tools", name);
    function.text("description");
    function.flag("strict", false);
    if (const Json* parameters = function.find("parameters");
        parameters != nullptr && !parameters->is_object())
      throw_bad_field(path + "function.parameters", "expected a JSON Schema object, got {}",
                      parameters->type_name());
    function.ignore({"return", "response"});  // some templates show what a function gives
    function.finish();
  }
}

chat::ToolChoice read_tool_choice(const Json& choice, const std::string& field, const Json& tools) {
  using Kind = chat::ToolChoice::Kind;
  chat::ToolChoice out;
  if (choice.is_string()) {
    const auto& word = choice.get_ref<const std::string&>();
    if (word == "auto") {
      out.kind = Kind::kAuto;
    } else if (word == "none") {
      out.kind = Kind::kNone;
    } else if (word == "required") {
      out.kind = Kind::kRequired;
    } else {
      throw_bad_field(field, "'{}' is not allowed; auto, none, required and a function are",
                      word.substr(0, 40));
    }
  } else {
    Fields named(choice, field + ".");
    const std::string type = named.required_text("type");
    if (type != "function") {
      throw ApiError(400,
                     fmt::format("{}.type: '{}' is not supported; function is", field, type.substr(0, 40)),
                     field + ".type", "unsupported_parameter");
    }
    const Json* function = named.find("function");
    if (function == nullptr) throw_bad_field(field + ".function", "is required");
    named.finish();
    Fields inner(*function, field + ".function.");
    out.kind = Kind::kNamed;
    out.name = inner.required_text("name");
    inner.finish();
    bool known = false;
    for (const Json& tool : tools) known |= tool["function"]["name"] == out.name;
    if (!known)
      throw_bad_field(field + ".function.name", "'{}' is none of the tools", out.name.substr(0, 80));
  }
  if (tools.empty() && out.kind != Kind::kNone && out.kind != Kind::kAuto)
    throw_bad_field(field, "is only allowed with tools");
  return out;
}

}  // namespace qiao::serve
