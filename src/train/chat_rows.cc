#include "train/chat_rows.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"

namespace qiao::train {
namespace {

constexpr size_t kMostMessages = 10'000;
constexpr JsonLimits kInnerLimits = {.max_bytes = size_t{16} << 20, .max_depth = 64};

template <typename... Args>
[[noreturn]] void refuse_row(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorKind::kInvalidInput, fmt::format(format, std::forward<Args>(args)...));
}

const Json* find_field(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

const std::string& need_text(const Json& object, const char* key, std::string_view where) {
  const Json* value = find_field(object, key);
  if (value == nullptr || !value->is_string())
    refuse_row("{}{}{}: a string was expected", where, where.empty() ? "" : ".", key);
  return value->get_ref<const std::string&>();
}

std::string optional_text(const Json& object, const char* key, std::string_view where) {
  return find_field(object, key) == nullptr ? std::string() : need_text(object, key, where);
}

Json read_call(const Json& call, const std::string& where) {
  if (!call.is_object()) refuse_row("{}: an object was expected", where);
  const Json* function = find_field(call, "function");
  if (function == nullptr || !function->is_object()) refuse_row("{}.function: an object was expected", where);
  Json arguments = Json::object();
  if (const Json* given = find_field(*function, "arguments"); given != nullptr && given->is_string()) {
    const std::string& text = given->get_ref<const std::string&>();
    if (!text.empty()) arguments = parse_json(text, where + ".function.arguments", kInnerLimits);
  } else if (given != nullptr) {
    arguments = *given;
  }
  if (!arguments.is_object())
    refuse_row("{}.function.arguments: an object, or its text, was expected", where);
  Json out = Json::object();
  if (find_field(call, "id") != nullptr) out["id"] = need_text(call, "id", where);
  out["type"] = "function";
  out["function"] = {{"name", need_text(*function, "name", where + ".function")},
                     {"arguments", std::move(arguments)}};
  return out;
}

// A string, or OpenAI's parts of it.
std::string read_content(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) refuse_row("{}: a string or a list of parts was expected", where);
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string part = fmt::format("{}[{}]", where, i);
    if (!content[i].is_object() || need_text(content[i], "type", part) != "text")
      refuse_row("{}: a part of type text was expected; no other can be taught", part);
    if (i > 0) text += '\n';
    text += need_text(content[i], "text", part);
  }
  return text;
}

Json read_message(const Json& message, const std::string& where) {
  if (!message.is_object()) refuse_row("{}: an object was expected", where);
  const std::string& role = need_text(message, "role", where);
  constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
  if (std::ranges::find(kRoles, role) == std::end(kRoles)) {
    refuse_row("{}.role: {} is not allowed; system, developer, user, assistant and tool are", where,
               quote_text(role, 40));
  }
  if (find_field(message, "function_call") != nullptr)
    refuse_row("{}.function_call is OpenAI's older form and not read; tool_calls are", where);
  Json out = {{"role", role}};
  const Json* content = find_field(message, "content");
  const Json* calls = role == "assistant" ? find_field(message, "tool_calls") : nullptr;
  if (calls != nullptr && !calls->is_array()) refuse_row("{}.tool_calls: a list was expected", where);
  if (content == nullptr && (calls == nullptr || calls->empty()))
    refuse_row("{}.content: a string or a list of parts was expected", where);
  if (content != nullptr) out["content"] = read_content(*content, where + ".content");
  if (calls != nullptr && !calls->empty()) {
    out["tool_calls"] = Json::array();
    for (size_t i = 0; i < calls->size(); ++i)
      out["tool_calls"].push_back(read_call((*calls)[i], fmt::format("{}.tool_calls[{}]", where, i)));
  }
  for (const char* key : {"name", "tool_call_id", "reasoning_content", "thinking", "reasoning"})
    if (find_field(message, key) != nullptr) out[key] = need_text(message, key, where);
  if (const Json* weight = find_field(message, "weight")) {
    if (!weight->is_number() || (*weight != 0 && *weight != 1))
      refuse_row("{}.weight: 0 or 1 was expected", where);
    out["weight"] = *weight != 0 ? 1 : 0;
  }
  return out;
}

Json text_message(const char* role, const std::string& text) { return {{"role", role}, {"content", text}}; }

// One {"from", "value"}; calls of a "function_call" get ids, which the results after them take.
Json read_share_message(const Json& message, const std::string& where, size_t& calls) {
  const std::string& from = need_text(message, "from", where);
  const std::string& value = need_text(message, "value", where);
  struct Name {
    std::string_view from;
    const char* role;
  };
  constexpr Name kNames[] = {{"human", "user"},
                             {"user", "user"},
                             {"gpt", "assistant"},
                             {"chatgpt", "assistant"},
                             {"bing", "assistant"},
                             {"bard", "assistant"},
                             {"model", "assistant"},
                             {"assistant", "assistant"},
                             {"system", "system"},
                             {"tool", "tool"},
                             {"observation", "tool"},
                             {"function_response", "tool"},
                             {"function_call", "assistant"}};
  const auto name = std::ranges::find(kNames, from, &Name::from);
  if (name == std::end(kNames)) {
    refuse_row("{}.from: {} is not known; human, gpt, system, function_call and observation are", where,
               quote_text(from, 40));
  }
  if (from != "function_call") {
    Json out = text_message(name->role, value);
    if (out["role"] == "tool" && calls > 0) out["tool_call_id"] = fmt::format("call_{}", calls - 1);
    return out;
  }
  Json list = parse_json(value, where + ".value", kInnerLimits);
  if (!list.is_array()) list = Json::array({std::move(list)});
  Json out = {{"role", "assistant"}, {"tool_calls", Json::array()}};
  for (const Json& call : list)
    out["tool_calls"].push_back(
        read_call({{"id", fmt::format("call_{}", calls++)}, {"function", call}}, where + ".value"));
  if (out["tool_calls"].empty()) refuse_row("{}.value: a call was expected", where);
  return out;
}

Json read_share_messages(const Json& list) {
  if (!list.is_array()) refuse_row("conversations: a list was expected");
  if (list.size() > kMostMessages)
    refuse_row("conversations has {} entries; {} are the most", list.size(), kMostMessages);
  Json messages = Json::array();
  size_t calls = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = fmt::format("conversations[{}]", i);
    if (!list[i].is_object()) refuse_row("{}: an object was expected", where);
    messages.push_back(list[i].contains("role") ? read_message(list[i], where)
                                                : read_share_message(list[i], where, calls));
  }
  return messages;
}

Json read_alpaca(const Json& row) {
  Json messages = Json::array();
  if (const Json* history = find_field(row, "history")) {
    if (!history->is_array() || history->size() > kMostMessages)
      refuse_row("history: a list of at most {} pairs was expected", kMostMessages);
    for (const Json& pair : *history) {
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
        refuse_row("history: pairs of a question and an answer were expected");
      messages.push_back(text_message("user", pair[0].get<std::string>()));
      messages.push_back(text_message("assistant", pair[1].get<std::string>()));
    }
  }
  std::string question = need_text(row, "instruction", "");
  const std::string input = optional_text(row, "input", "");
  if (!input.empty()) question += (question.empty() ? "" : "\n") + input;
  messages.push_back(text_message("user", question));
  messages.push_back(text_message("assistant", need_text(row, "output", "")));
  return messages;
}

void add_system(const Json& row, Json& messages) {
  const std::string system = optional_text(row, "system", "");
  if (!system.empty()) messages.insert(messages.begin(), text_message("system", system));
}

}  // namespace

Json read_messages(const Json& messages, std::string_view where) {
  if (!messages.is_array() || messages.empty())
    refuse_row("{}: a list of one or more messages was expected", where);
  if (messages.size() > kMostMessages)
    refuse_row("{} has {} entries; {} are the most", where, messages.size(), kMostMessages);
  Json list = Json::array();
  for (size_t i = 0; i < messages.size(); ++i)
    list.push_back(read_message(messages[i], fmt::format("{}[{}]", where, i)));
  return list;
}

Json read_text_or_messages(const Json& value, std::string_view role, std::string_view where) {
  if (value.is_string()) return Json::array({{{"role", role}, {"content", value}}});
  if (!value.is_array()) refuse_row("{}: a string or a list of messages was expected", where);
  return read_messages(value, where);
}

void read_tools(const Json& row, Conversation& conversation) {
  if (const Json* variables = find_field(row, "chat_template_kwargs")) {
    if (!variables->is_object()) refuse_row("chat_template_kwargs: an object was expected");
    conversation.variables = *variables;
  }
  const Json* given = find_field(row, "tools");
  if (given == nullptr) return;
  Json tools = *given;
  if (tools.is_string()) {
    const std::string text = tools.get<std::string>();
    if (text.empty()) return;
    tools = parse_json(text, "tools", kInnerLimits);
  }
  if (!tools.is_array()) refuse_row("tools: a list of functions was expected");
  if (tools.empty()) return;
  conversation.tools = Json::array();
  for (const Json& tool : tools) {
    const bool wrapped = tool.is_object() && tool.contains("function");
    const Json& function = wrapped ? tool["function"] : tool;
    if (!function.is_object()) refuse_row("tools: objects were expected");
    need_text(function, "name", "tools");
    conversation.tools.push_back(wrapped ? tool : Json{{"type", "function"}, {"function", tool}});
  }
}

Conversation read_conversation(const Json& row) {
  Conversation conversation;
  const auto has = [&](const char* key) { return row.is_object() && find_field(row, key) != nullptr; };
  if (has("messages")) {
    conversation.messages = read_messages(row["messages"], "messages");
  } else if (has("conversations")) {
    conversation.messages = read_share_messages(row["conversations"]);
    add_system(row, conversation.messages);
  } else if (has("instruction") && has("output")) {
    conversation.messages = read_alpaca(row);
    add_system(row, conversation.messages);
  } else if (has("prompt") && has("completion")) {
    conversation.messages = read_text_or_messages(row["prompt"], "user", "prompt");
    add_system(row, conversation.messages);
    conversation.prompt = conversation.messages.size();
    for (Json& message : read_text_or_messages(row["completion"], "assistant", "completion"))
      conversation.messages.push_back(std::move(message));
  } else {
    refuse_row(
        R"("messages", "conversations", "instruction" with "output", or "prompt" with "completion" was expected)");
  }
  read_tools(row, conversation);
  return conversation;
}

}  // namespace qiao::train
