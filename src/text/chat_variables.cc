#include "text/chat_variables.h"

#include "base/error.h"

namespace qiao {
namespace {

Json alias_reasoning(const Json& message) {
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    const auto found = message.find(name);
    if (found == message.end() || found->is_null()) continue;
    Json result = Json::object();
    result["thinking"] = *found;
    for (const auto& [key, value] : message.items()) result[key] = value;
    result["reasoning_content"] = *found;
    return result;
  }
  return message;
}

}  // namespace

Json complete_chat_variables(Json variables) {
  for (const char* name : {"tools", "documents"}) {
    if (!variables.contains(name)) variables[name] = nullptr;
  }
  if (!variables.contains("add_generation_prompt")) variables["add_generation_prompt"] = false;
  Json& messages = variables["messages"];
  if (!messages.is_array()) {
    throw_error(ErrorKind::kInvalidInput, "messages: expected a list, got {}", messages.type_name());
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) {
      throw_error(ErrorKind::kInvalidInput, "messages[{}]: expected an object, got {}", i,
                  messages[i].type_name());
    }
    messages[i] = alias_reasoning(messages[i]);
  }
  return variables;
}

}  // namespace qiao
