// Tools of the Responses API, where functions are written flat: {"type": "function", "name", "parameters"}.
#include <algorithm>

#include "serve/responses_fields.h"

namespace qiao::serve {
namespace {

// Tools that OpenAI runs itself and agents offer beside their own: no call of them is ever required, so the
// model is not told of them. Those that a client counts on (file_search, mcp…) are an error.
constexpr std::string_view kHostedElsewhere[] = {"web_search",         "web_search_2025_08_26",
                                                 "web_search_preview", "web_search_preview_2025_03_11",
                                                 "image_generation",   "tool_search"};

class ToolReader {
 public:
  void read_list(const Json& tools, const std::string& field, const std::string& name_space) {
    if (!tools.is_array()) throw_bad_field(field, "expected a list, got {}", tools.type_name());
    if (tools.size() > kMaxTools)
      throw_bad_field(field, "has {} entries; at most {} are allowed", tools.size(), kMaxTools);
    for (size_t i = 0; i < tools.size(); ++i) read(tools[i], fmt::format("{}[{}].", field, i), name_space);
  }
  Json functions = Json::array();  // as /v1/chat/completions writes them
  OfferedTools offered;
  Json shown = Json::array();  // as they are echoed: what the model is offered

 private:
  void read(const Json& value, const std::string& path, const std::string& name_space) {
    Fields tool(value, path);
    const std::string type = tool.required_text("type");
    const bool hosted = std::find(std::begin(kHostedElsewhere), std::end(kHostedElsewhere), type) !=
                        std::end(kHostedElsewhere);
    if (hosted) return;
    if (name_space.empty()) shown.push_back(value);
    if (type == "namespace" && name_space.empty()) {
      const std::string name = tool.required_text("name");
      const Json* tools = tool.find("tools");
      if (tools == nullptr) throw_bad_field(tool.full_name("tools"), "is required");
      read_list(*tools, tool.full_name("tools"), name);
      tool.ignore({"description"});
      return tool.finish();
    }
    if (type != "function" && type != "custom") {
      throw ApiError(400,
                     fmt::format("{}type: tools of type '{}' do not run here; function and custom do", path,
                                 type.substr(0, 40)),
                     path + "type", "unsupported_parameter");
    }
    const std::string name = tool.required_text("name");
    check_tool_name(name, tool.full_name("name"));
    Json function = {{"name", offer(name, name_space, type == "custom", tool.full_name("name"))}};
    std::string description = tool.text("description").value_or("");
    if (type == "custom") {
      describe_format(tool, description);
      function["parameters"] = {{"type", "object"},
                                {"properties", {{"input", {{"type", "string"}}}}},
                                {"required", {"input"}},
                                {"additionalProperties", false}};
    } else {
      if (const Json* parameters = tool.find("parameters")) {
        if (!parameters->is_object())
          throw_bad_field(tool.full_name("parameters"), "expected a JSON Schema object, got {}",
                          parameters->type_name());
        function["parameters"] = *parameters;
      } else {
        function["parameters"] = {{"type", "object"}, {"properties", Json::object()}};
      }
      if (tool.flag("strict", false)) function["strict"] = true;
    }
    if (!description.empty()) function["description"] = std::move(description);
    tool.ignore({"allowed_callers", "async", "defer_loading", "output_schema"});
    tool.finish();
    functions.push_back({{"type", "function"}, {"function", std::move(function)}});
  }

  // The name that the model gets: the tool's, or the namespace's before it where another has that name.
  std::string offer(const std::string& name, const std::string& name_space, bool custom,
                    const std::string& field) {
    std::string known = name;
    if (!name_space.empty() && offered.contains(known)) known = name_space + "__" + name;
    if (!offered.emplace(known, OfferedTool{name, name_space, custom}).second)
      throw_bad_field(field, "'{}' is the name of an earlier tool", name.substr(0, 80));
    return known;
  }

  // What a custom tool's text must look like: told, not held to.
  static void describe_format(Fields& tool, std::string& description) {
    const Json* format = tool.find("format");
    if (format == nullptr) return;
    Fields fields(*format, tool.full_name("format") + ".");
    const std::string type = fields.required_text("type");
    if (type == "grammar") {
      const std::string syntax = fields.required_text("syntax");
      if (syntax != "lark" && syntax != "regex")
        throw_bad_field(fields.full_name("syntax"), "'{}' is not allowed; lark and regex are",
                        syntax.substr(0, 40));
      description += fmt::format("\n\nThe input must match this {} grammar:\n{}", syntax,
                                 fields.required_text("definition"));
    } else if (type != "text") {
      throw_bad_field(fields.full_name("type"), "'{}' is not allowed; text and grammar are",
                      type.substr(0, 40));
    }
    fields.finish();
  }
};

// Only these of the tools, by their names in the API.
void allow_only(const Json& list, const std::string& field, ToolReader& tools) {
  if (!list.is_array()) throw_bad_field(field, "expected a list, got {}", list.type_name());
  std::set<std::string> names;
  for (size_t i = 0; i < list.size(); ++i) {
    Fields entry(list[i], fmt::format("{}[{}].", field, i));
    entry.required_text("type");
    if (const auto name = entry.text("name")) names.insert(*name);
  }
  Json kept = Json::array();
  for (const Json& tool : tools.functions) {
    if (names.contains(tools.offered.at(tool["function"]["name"].get<std::string>()).name))
      kept.push_back(tool);
  }
  tools.functions = std::move(kept);
}

void read_choice(const Json& value, ToolReader& tools, chat::ToolChoice& choice) {
  using Kind = chat::ToolChoice::Kind;
  const auto mode = [](const std::string& text, const std::string& field) {
    if (text == "auto") return Kind::kAuto;
    if (text == "none") return Kind::kNone;
    if (text == "required") return Kind::kRequired;
    throw_bad_field(field,
                    "'{}' is not allowed; none, auto, required, or an object with the type function, "
                    "custom or allowed_tools is",
                    text.substr(0, 40));
  };
  if (value.is_string()) {
    choice.kind = mode(value.get<std::string>(), "tool_choice");
  } else {
    Fields fields(value, "tool_choice.");
    const std::string type = fields.required_text("type");
    if (type == "function" || type == "custom") {
      choice.kind = Kind::kNamed;
      const std::string name = fields.required_text("name");
      const std::string name_space = fields.text("namespace").value_or("");
      for (const auto& [known, tool] : tools.offered) {
        if (tool.name == name && (name_space.empty() || tool.name_space == name_space)) choice.name = known;
      }
      if (choice.name.empty())
        throw_bad_field("tool_choice.name", "'{}' is not among the tools", name.substr(0, 80));
    } else if (type == "allowed_tools") {
      const std::string given = fields.required_text("mode");
      choice.kind = mode(given, "tool_choice.mode");
      const Json* list = fields.find("tools");
      if (list == nullptr) throw_bad_field("tool_choice.tools", "is required");
      allow_only(*list, "tool_choice.tools", tools);
    } else {
      throw_bad_field("tool_choice.type", "'{}' is not supported; function, custom and allowed_tools are",
                      type.substr(0, 40));
    }
    fields.finish();
  }
  if (choice.kind == Kind::kRequired && tools.functions.empty())
    throw_bad_field("tool_choice", "requires a call, and there are no tools that could be called");
}

}  // namespace

OfferedTools read_response_tools(Fields& fields, ChatTurn& turn, Json& response) {
  ToolReader tools;
  if (const Json* list = fields.find("tools")) tools.read_list(*list, "tools", "");
  const Json* choice = fields.find("tool_choice");
  response["tool_choice"] = choice == nullptr ? Json("auto") : *choice;
  if (choice != nullptr) read_choice(*choice, tools, turn.tool_choice);
  response["tools"] = std::move(tools.shown);
  turn.parallel_tool_calls = fields.flag("parallel_tool_calls", true);
  response["parallel_tool_calls"] = turn.parallel_tool_calls;
  turn.tools = std::move(tools.functions);
  return std::move(tools.offered);
}

}  // namespace qiao::serve
