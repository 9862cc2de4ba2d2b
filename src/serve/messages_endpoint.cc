// /v1/messages: Anthropic's API.
#include "serve/message_answer.h"

namespace qiao::serve {

void create_message(ServeContext& context, const HttpRequest& request,
                    const std::shared_ptr<HttpExchange>& exchange) {
  MessagesRequest read = read_messages_request(context, parse_body(request), api_key_of(request), false);
  auto answer = std::make_shared<MessageAnswer>(context, read, exchange, request.id);
  run_chat(context, std::move(read.turn), exchange, std::move(answer));
}

void count_message_tokens(ServeContext& context, const HttpRequest& request,
                          const std::shared_ptr<HttpExchange>& exchange) {
  const MessagesRequest read = read_messages_request(context, parse_body(request), api_key_of(request), true);
  exchange->send(200, "application/json",
                 dump_json(Json{{"input_tokens", count_chat_tokens(context, read.turn)}}),
                 {{"request-id", request.id}});
}

}  // namespace qiao::serve
