#include "serve/chat_history.h"

#include "base/error.h"

namespace qiao::serve {
namespace {

void append(Json& message, const char* key, const std::string& text, std::string_view between) {
  Json& value = message[key];
  if (!value.is_string()) value = "";
  auto& old = value.get_ref<std::string&>();
  if (!old.empty() && !text.empty()) old += between;
  old += text;
}

}  // namespace

void ChatHistory::add_system(const std::string& text) {
  if (messages_.empty() || messages_.back()["role"] != "system")
    messages_.push_back({{"role", "system"}, {"content", ""}});
  append(messages_.back(), "content", text, "\n\n");
}

void ChatHistory::add_user(const std::string& text) {
  if (messages_.empty() || messages_.back()["role"] != "user")
    messages_.push_back({{"role", "user"}, {"content", ""}});
  append(messages_.back(), "content", text, "\n\n");
}

Json& ChatHistory::assistant() {
  if (!ends_with_answer()) messages_.push_back({{"role", "assistant"}, {"content", ""}});
  return messages_.back();
}

bool ChatHistory::ends_with_answer() const {
  return !messages_.empty() && messages_.back()["role"] == "assistant";
}

void ChatHistory::add_thoughts(const std::string& text) {
  if (!text.empty()) append(assistant(), "reasoning_content", text, "\n\n");
}

void ChatHistory::add_answer(const std::string& text) { append(assistant(), "content", text, "\n\n"); }

void ChatHistory::add_call(const std::string& id, const std::string& name, Json arguments,
                           const std::string& field) {
  if (!calls_.emplace(id, name).second)
    throw_bad_field(field, "'{}' is the id of an earlier call", id.substr(0, 80));
  Json& message = assistant();
  if (!message.contains("tool_calls")) message["tool_calls"] = Json::array();
  message["tool_calls"].push_back({{"id", id},
                                   {"type", "function"},
                                   {"function", {{"name", name}, {"arguments", std::move(arguments)}}}});
}

void ChatHistory::add_result(const std::string& id, const std::string& text, const std::string& field) {
  const auto call = calls_.find(id);
  if (call == calls_.end()) throw_bad_field(field, "no call with the id '{}' comes before", id.substr(0, 80));
  messages_.push_back({{"role", "tool"}, {"content", text}, {"tool_call_id", id}, {"name", call->second}});
}

void check_tool_name(const std::string& name, const std::string& field) {
  constexpr std::string_view kAllowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
  if (name.empty() || name.size() > 128 || name.find_first_not_of(kAllowed) != std::string::npos) {
    throw_bad_field(field, "'{}': 1 to 128 letters, digits, '_' and '-' are expected", name.substr(0, 80));
  }
}

Json parse_arguments(const std::string& text, const std::string& field) {
  if (text.empty()) return Json::object();
  Json arguments;
  try {
    arguments = parse_json(text, field, {.max_bytes = size_t{16} << 20, .max_depth = 64});
  } catch (const Error& e) {
    throw ApiError(400, e.what(), field);
  }
  if (!arguments.is_object())
    throw_bad_field(field, "expected the text of a JSON object, got {}", arguments.type_name());
  return arguments;
}

}  // namespace qiao::serve
