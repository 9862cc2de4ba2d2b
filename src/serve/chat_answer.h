// A chat's answer as /v1/chat/completions writes it.
#pragma once

#include <memory>

#include "serve/chat_run.h"

namespace qiao::serve {

// Plain or streamed, as the turn's fields say; `exchange` is answered once the last choice has ended.
std::shared_ptr<ChatSink> make_chat_answer(ServeContext& context, const ChatTurn& turn,
                                           std::shared_ptr<HttpExchange> exchange);

}  // namespace qiao::serve
