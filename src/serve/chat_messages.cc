// OpenAI's list of messages, read and checked.
#include <algorithm>

#include "serve/chat_run.h"

namespace qiao::serve {
namespace {

constexpr size_t kMaxMessages = 10'000;

constexpr size_t kMaxCallsInMessage = 1000;

// {"id", "type", "function": {"name", "arguments": object}} of each of an earlier answer's calls.
Json read_tool_calls(const Json& calls, const std::string& field) {
  if (!calls.is_array()) throw_bad_field(field, "expected a list of calls, got {}", calls.type_name());
  if (calls.size() > kMaxCallsInMessage)
    throw_bad_field(field, "has {} entries; at most {} are allowed", calls.size(), kMaxCallsInMessage);
  Json list = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string path = fmt::format("{}[{}].", field, i);
    Fields call(calls[i], path);
    const std::string id = call.required_text("id");
    if (const auto type = call.text("type"); type && *type != "function")
      throw_bad_field(path + "type", "'{}' is not supported; function is", type->substr(0, 40));
    const Json* given = call.find("function");
    if (given == nullptr) throw_bad_field(path + "function", "is required");
    call.ignore({"index"});
    call.finish();
    Fields function(*given, path + "function.");
    const std::string name = function.required_text("name");
    Json arguments = Json::object();
    if (const Json* value = function.find("arguments"); value != nullptr && value->is_string()) {
      const auto& text = value->get_ref<const std::string&>();
      try {
        if (!text.empty()) arguments = parse_json(text, path + "function.arguments", {.max_depth = 64});
      } catch (const Error& e) {
        throw ApiError(400, e.what(), path + "function.arguments");
      }
    } else if (value != nullptr) {
      arguments = *value;
    }
    if (!arguments.is_object()) {
      throw_bad_field(path + "function.arguments", "expected the text of a JSON object, got {}",
                      arguments.type_name());
    }
    function.finish();
    list.push_back({{"id", id},
                    {"type", "function"},
                    {"function", {{"name", name}, {"arguments", std::move(arguments)}}}});
  }
  return list;
}

}  // namespace

std::string read_content_text(const Json& content, const std::string& field) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    throw_bad_field(field, "expected a string or a list of parts, got {}", content.type_name());
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    Fields part(content[i], fmt::format("{}[{}].", field, i));
    const std::string type = part.required_text("type");
    if (type != "text" && type != "refusal") {
      throw ApiError(400,
                     fmt::format("{}: parts of type '{}' cannot be read by this model; only text can",
                                 part.full_name("type"), type.substr(0, 40)),
                     part.full_name("type"), "unsupported_content");
    }
    if (i > 0) text += '\n';
    text += part.required_text(type);
  }
  return text;
}

Json read_chat_messages(const Json& messages, const std::string& field, const ServeContext& context) {
  if (!messages.is_array() || messages.empty())
    throw_bad_field(field, "expected a list of one or more messages");
  if (messages.size() > kMaxMessages) {
    throw_bad_field(field, "has {} entries; at most {} are allowed", messages.size(), kMaxMessages);
  }
  const ChatTemplate* chat_template = context.model->chat_template();
  const bool knows_developer =
      chat_template != nullptr && chat_template->source().find("developer") != std::string::npos;
  Json list = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string path = fmt::format("{}[{}].", field, i);
    Fields message(messages[i], path);
    std::string role = message.required_text("role");
    constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
    if (role == "function") {
      throw ApiError(
          400, path + "role: 'function' is OpenAI's older form and not supported; a message of role tool is",
          path + "role", "unsupported_parameter");
    }
    if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
      throw_bad_field(path + "role", "'{}' is not allowed; system, developer, user, assistant and tool are",
                      role.substr(0, 40));
    }
    if (role == "developer" && !knows_developer) role = "system";
    const Json* content = message.find("content");
    Json out = {{"role", role}};
    const Json* calls = role == "assistant" ? message.find("tool_calls") : nullptr;
    if (content != nullptr) {
      out["content"] = read_content_text(*content, path + "content");
    } else if (calls == nullptr) {
      throw_bad_field(path + "content", "is required");
    }
    if (calls != nullptr) out["tool_calls"] = read_tool_calls(*calls, path + "tool_calls");
    if (role == "tool") out["tool_call_id"] = message.required_text("tool_call_id");
    for (const char* key : {"name", "tool_call_id", "reasoning_content"}) {
      if (const auto value = message.text(key)) out[key] = *value;
    }
    message.refuse({"function_call"}, "is OpenAI's older form and not supported; tool_calls are");
    message.ignore({"refusal", "annotations", "audio"});
    message.finish();
    list.push_back(std::move(out));
  }
  return list;
}

}  // namespace qiao::serve
