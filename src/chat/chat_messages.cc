// What a template is given for messages with calls of tools and their results.
#include <fmt/format.h>

#include "chat/chat_format.h"
#include "chat/json_text.h"

namespace qiao::chat {
namespace {

// 9 letters and digits for any id; alike for alike.
std::string short_id(const std::string& id) {
  if (id.size() == 9 &&
      id.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") ==
          std::string::npos)
    return id;
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : id) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  constexpr std::string_view kDigits = "0123456789abcdefghijklmnopqrstuvwxyz";
  std::string out;
  for (int i = 0; i < 9; ++i) {
    out += kDigits[hash % kDigits.size()];
    hash /= kDigits.size();
  }
  return out;
}

// As the tools' list and form are told to a model whose template has no place for them.
std::string describe_tools(const ChatFormat& format, const Json& tools) {
  std::string text =
      "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
      "function signatures within <tools></tools> XML tags:\n<tools>\n";
  for (const Json& tool : tools) text += dump_spaced(tool) + "\n";
  const Json example = Json::array(
      {{{"function", {{"name", "FUNCTION_NAME"}, {"arguments", {{"ARGUMENT_NAME", "ARGUMENT_VALUE"}}}}}}});
  return text + "</tools>\n\nFor each function call, answer in this form:\n" +
         write_calls(format.form, example);
}

// To the system message, which is made where there is none; where the template takes none, to the first
// message of the user.
void add_system_text(const ChatFormat& format, const std::string& text, Json& messages) {
  const char* role = format.takes_system ? "system" : "user";
  if (format.takes_system && (messages.empty() || messages[0].value("role", "") != "system")) {
    Json list = Json::array({{{"role", "system"}, {"content", text}}});
    for (Json& message : messages) list.push_back(std::move(message));
    messages = std::move(list);
    return;
  }
  for (Json& message : messages) {
    if (message.value("role", "") != role || !message["content"].is_string()) continue;
    const auto& content = message["content"].get_ref<const std::string&>();
    message["content"] = format.takes_system ? content + "\n\n" + text : text + "\n\n" + content;
    return;
  }
}

// Calls and results as plain text, for templates that know neither.
Json plain_messages(const ChatFormat& format, Json messages) {
  Json list = Json::array();
  bool result_before = false;
  for (Json& message : messages) {
    const std::string role = message.value("role", "");
    if (role == "tool") {
      const std::string text = fmt::format("<tool_response>\n{}\n</tool_response>",
                                           message.contains("content") && message["content"].is_string()
                                               ? message["content"].get<std::string>()
                                               : "");
      if (result_before) {
        list.back()["content"] = list.back()["content"].get<std::string>() + "\n" + text;
      } else {
        list.push_back({{"role", "user"}, {"content", text}});
      }
      result_before = true;
      continue;
    }
    result_before = false;
    if (message.contains("tool_calls") && !message["tool_calls"].empty()) {
      std::string text = message.contains("content") && message["content"].is_string()
                             ? message["content"].get<std::string>()
                             : "";
      if (!text.empty()) text += '\n';
      message["content"] = text + write_calls(format.form, message["tool_calls"]);
    }
    message.erase("tool_calls");
    list.push_back(std::move(message));
  }
  return list;
}

}  // namespace

Json chat_variables(const ChatFormat& format, Json messages, const Json& tools) {
  if (format.tools == ToolSyntax::kNone) messages = plain_messages(format, std::move(messages));
  for (Json& message : messages) {
    if (format.short_ids && message.contains("tool_call_id") && message["tool_call_id"].is_string())
      message["tool_call_id"] = short_id(message["tool_call_id"].get<std::string>());
    const bool calls = message.contains("tool_calls") && !message["tool_calls"].empty();
    if (!calls) {
      message.erase("tool_calls");  // an empty list is a call to some templates
      if (!message.contains("content") || message["content"].is_null()) message["content"] = "";
      continue;
    }
    const auto content = message.find("content");
    const bool no_text = content == message.end() || content->is_null() ||
                         (content->is_string() && content->get_ref<const std::string&>().empty());
    if (no_text) message["content"] = format.null_content ? Json(nullptr) : Json("");
    for (Json& call : message["tool_calls"]) {
      if (format.short_ids && call.contains("id")) call["id"] = short_id(call["id"].get<std::string>());
      Json& arguments = call["function"]["arguments"];
      if (format.arguments_as_text && !arguments.is_string()) arguments = dump_spaced(arguments);
    }
  }
  Json variables = Json::object();
  if (!tools.empty() && format.renders_tools) {
    variables["tools"] = tools;
  } else if (!tools.empty()) {
    add_system_text(format, describe_tools(format, tools), messages);
  }
  variables["messages"] = std::move(messages);
  return variables;
}

}  // namespace qiao::chat
