#include "serve/message_answer.h"

#include "base/error.h"
#include "serve/api_error.h"

namespace qiao::serve {
namespace {

// Thoughts here are not signed; clients drop blocks whose signature is empty.
constexpr const char* kSignature = "unsigned";

Json input_json(const std::string& text) {
  try {
    Json input = parse_json(text, "input", {.max_bytes = size_t{64} << 20, .max_depth = 64});
    if (input.is_object()) return input;
  } catch (const Error&) {
  }
  return Json::object();  // cut off
}

const char* error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 529:
      return "overloaded_error";
    default:
      return status >= 500 ? "api_error" : "invalid_request_error";
  }
}

}  // namespace

int message_error_status(int status) { return status == 503 ? 529 : status; }

Json message_error_json(int status, std::string_view message, std::string_view request_id) {
  return {{"type", "error"},
          {"error", {{"type", error_type(status)}, {"message", message}}},
          {"request_id", request_id}};
}

MessageAnswer::MessageAnswer(ServeContext& context, const MessagesRequest& request,
                             std::shared_ptr<HttpExchange> exchange, std::string request_id)
    : exchange_(std::move(exchange)),
      stream_(request.stream),
      show_thinking_(request.show_thinking),
      max_tokens_(request.turn.max_tokens),
      request_id_(std::move(request_id)),
      message_({{"id", random_id("msg_")},
                {"type", "message"},
                {"role", "assistant"},
                {"model", context.served_name(request.turn.adapter)},
                {"content", Json::array()},
                {"stop_reason", nullptr},
                {"stop_sequence", nullptr}}) {}

void MessageAnswer::emit(const char* type, Json fields) {
  if (!stream_) return;
  Json event = {{"type", type}};
  for (auto& [name, value] : fields.items()) event[name] = std::move(value);
  exchange_->write(sse_event(type, event));
}

void MessageAnswer::on_begin(int64_t prompt_tokens) {
  if (!stream_) return;
  exchange_->begin(200, "text/event-stream; charset=utf-8", [&] {
    HttpHeaders headers = sse_headers();
    headers.emplace_back("request-id", request_id_);
    return headers;
  }());
  // What of the prompt is cached shows once it is looked up: message_delta has it.
  Json message = message_;
  message["usage"] = {{"input_tokens", prompt_tokens},
                      {"cache_creation_input_tokens", 0},
                      {"cache_read_input_tokens", 0},
                      {"output_tokens", 0}};
  emit("message_start", {{"message", std::move(message)}});
  emit("ping", Json::object());
}

void MessageAnswer::on_event(size_t, const chat::ChatEvent& event) {
  switch (event.kind) {
    case chat::ChatEvent::Kind::kReasoning:
      if (block_ != Block::kThinking) open(Block::kThinking, event);
      if (show_thinking_) append(event.text);
      break;
    case chat::ChatEvent::Kind::kText:
      if (block_ != Block::kText) open(Block::kText, event);
      append(event.text);
      break;
    case chat::ChatEvent::Kind::kToolCall:
      open(Block::kToolUse, event);
      break;
    case chat::ChatEvent::Kind::kToolArguments:
      append(event.text);
      break;
  }
}

void MessageAnswer::open(Block block, const chat::ChatEvent& event) {
  close();
  block_ = block;
  text_.clear();
  switch (block) {
    case Block::kNone:
      return;
    case Block::kThinking:
      content_ = {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}};
      break;
    case Block::kText:
      content_ = {{"type", "text"}, {"text", ""}};
      break;
    case Block::kToolUse:
      content_ = {{"type", "tool_use"}, {"id", event.id}, {"name", event.name}, {"input", Json::object()}};
      break;
  }
  emit("content_block_start", {{"index", message_["content"].size()}, {"content_block", content_}});
}

void MessageAnswer::append(const std::string& text) {
  if (text.empty() || block_ == Block::kNone) return;
  text_ += text;
  const char* type = block_ == Block::kThinking ? "thinking_delta"
                     : block_ == Block::kText   ? "text_delta"
                                                : "input_json_delta";
  const char* key = block_ == Block::kThinking ? "thinking"
                    : block_ == Block::kText   ? "text"
                                               : "partial_json";
  emit("content_block_delta",
       {{"index", message_["content"].size()}, {"delta", {{"type", type}, {key, text}}}});
}

void MessageAnswer::close() {
  if (block_ == Block::kNone) return;
  const size_t index = message_["content"].size();
  switch (block_) {
    case Block::kNone:
      break;
    case Block::kThinking:
      content_["thinking"] = text_;
      content_["signature"] = kSignature;
      emit("content_block_delta",
           {{"index", index}, {"delta", {{"type", "signature_delta"}, {"signature", kSignature}}}});
      break;
    case Block::kText:
      content_["text"] = text_;
      break;
    case Block::kToolUse:
      content_["input"] = input_json(text_);
      break;
  }
  emit("content_block_stop", {{"index", index}});
  message_["content"].push_back(std::move(content_));
  block_ = Block::kNone;
}

void MessageAnswer::finish_with_error(const std::string& message, int status) {
  const Json error = message_error_json(status, message, request_id_);
  if (stream_) {
    exchange_->write(sse_event("error", error));
    exchange_->end();
  } else {
    exchange_->send(status, "application/json", dump_json(error), {{"request-id", request_id_}});
  }
}

void MessageAnswer::on_finish(size_t, const ChatFinish& finish) {
  if (finish.reason == ChatFinish::Reason::kError) {
    const ApiError error = to_api_error(Error(finish.error_kind, finish.error));
    return finish_with_error(error.what(), message_error_status(error.status()));
  }
  if (finish.reason == ChatFinish::Reason::kCancelled)
    return finish_with_error("the request was cancelled", 529);
  close();
  Json stop_sequence = nullptr;
  const char* reason = "end_turn";
  if (finish.reason == ChatFinish::Reason::kToolCalls) {
    reason = "tool_use";
  } else if (finish.reason == ChatFinish::Reason::kLength) {
    reason = finish.completion_tokens < max_tokens_ ? "model_context_window_exceeded" : "max_tokens";
  } else if (!finish.stop_text.empty()) {
    reason = "stop_sequence";
    stop_sequence = finish.stop_text;
  }
  const Json usage = {{"input_tokens", finish.prompt_tokens - finish.cached_tokens},
                      {"cache_creation_input_tokens", 0},
                      {"cache_read_input_tokens", finish.cached_tokens},
                      {"output_tokens", finish.completion_tokens},
                      {"output_tokens_details", {{"thinking_tokens", finish.reasoning_tokens}}}};
  if (stream_) {
    emit("message_delta", {{"delta", {{"stop_reason", reason}, {"stop_sequence", std::move(stop_sequence)}}},
                           {"usage", usage}});
    emit("message_stop", Json::object());
    exchange_->end();
    return;
  }
  message_["stop_reason"] = reason;
  message_["stop_sequence"] = std::move(stop_sequence);
  message_["usage"] = usage;
  exchange_->send(200, "application/json", dump_json(message_), {{"request-id", request_id_}});
}

}  // namespace qiao::serve
