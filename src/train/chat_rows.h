// Rows of conversations, in the shapes that people keep them in, as OpenAI's messages.
#pragma once

#include <string_view>

#include "base/json.h"

namespace qiao::train {

struct Conversation {
  Json messages = Json::array();    // checked: {"role", "content", "tool_calls"…}, arguments as objects
  Json tools;                       // OpenAI's list; null: none
  Json variables = Json::object();  // of the template: the row's chat_template_kwargs
  size_t prompt = 0;                // so many messages are the question: nothing in them carries loss
};

// OpenAI's list of messages; answers may have "reasoning_content", "tool_calls" and "weight" (0: no loss).
// Throws Error(kInvalidInput) naming the field by `where`.
Json read_messages(const Json& messages, std::string_view where);

// A text (one message of `role`) or a list of messages.
Json read_text_or_messages(const Json& value, std::string_view role, std::string_view where);

// The row's "tools" (a list, or its text), null where there are none, and its chat_template_kwargs.
void read_tools(const Json& row, Conversation& conversation);

// {"messages": […], "tools"}, ShareGPT's {"conversations": [{"from", "value"}]}, Alpaca's {"instruction",
// "input", "output", "history", "system"} or {"prompt", "completion"}, whichever the row is. Throws
// Error(kInvalidInput) saying what was expected.
Conversation read_conversation(const Json& row);

}  // namespace qiao::train
