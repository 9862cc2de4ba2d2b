// What /v1/messages reads: system, messages and tools of Anthropic's API, as a chat's turn.
#pragma once

#include <string_view>

#include "serve/chat_run.h"

namespace qiao::serve {

struct MessagesRequest {
  ChatTurn turn;
  bool stream = false;
  bool show_thinking = true;
};

// Reads the body; ApiError names the field. `counting`: of count_tokens, which takes no max_tokens.
MessagesRequest read_messages_request(ServeContext& context, const Json& body, std::string_view tenant,
                                      bool counting);

}  // namespace qiao::serve
