#include "serve/response_answer.h"

#include "base/error.h"
#include "serve/api_error.h"
#include "serve/response_store.h"

namespace qiao::serve {
namespace {

Json logprob_json(const Tokenizer& tokenizer, TokenId id, float logprob) {
  const std::string bytes = tokenizer.token_bytes(id);
  return {
      {"token", bytes}, {"bytes", std::vector<uint8_t>(bytes.begin(), bytes.end())}, {"logprob", logprob}};
}

// The text that a custom tool is called with; what was cut off stays as it is.
std::string custom_input(const std::string& arguments) {
  try {
    const Json parsed = parse_json(arguments, "arguments", {.max_bytes = size_t{64} << 20, .max_depth = 64});
    const auto input = parsed.find("input");
    if (parsed.is_object() && input != parsed.end() && input->is_string()) return input->get<std::string>();
  } catch (const Error&) {
  }
  return arguments;
}

}  // namespace

ResponseAnswer::ResponseAnswer(ServeContext& context, ResponsesRequest& request,
                               std::shared_ptr<HttpExchange> exchange)
    : context_(context),
      exchange_(std::move(exchange)),
      stream_(request.stream),
      store_(request.store),
      summary_(request.summary),
      logprobs_(request.turn.logprobs),
      tenant_(request.turn.tenant),
      tools_(std::move(request.tools)),
      items_(std::move(request.items)),
      response_(std::move(request.response)) {}

void ResponseAnswer::emit(const char* type, Json fields) {
  if (!stream_) return;
  Json event = {{"type", type}, {"sequence_number", sequence_++}};
  for (auto& [name, value] : fields.items()) event[name] = std::move(value);
  exchange_->write(sse_event(type, event));
}

void ResponseAnswer::emit_response(const char* type) {
  if (stream_) emit(type, {{"response", response_}});
}

Json ResponseAnswer::at_item() const {
  return {{"item_id", shown_["id"]}, {"output_index", response_["output"].size()}};
}

Json ResponseAnswer::at_part(const char* index_name) const {
  Json at = at_item();
  at[index_name] = 0;
  return at;
}

void ResponseAnswer::on_begin(int64_t) {
  if (!stream_) return;
  exchange_->begin(200, "text/event-stream; charset=utf-8", sse_headers());
  emit_response("response.created");
  emit_response("response.in_progress");
}

void ResponseAnswer::on_token(size_t, const GenerationEvent& token) {
  Json entry = logprob_json(context_.model->tokenizer(), token.token, token.logprobs.logprob);
  Json top = Json::array();
  for (const auto& [id, logprob] : token.logprobs.top)
    top.push_back(logprob_json(context_.model->tokenizer(), id, logprob));
  entry["top_logprobs"] = std::move(top);
  new_logprobs_.push_back(std::move(entry));
}

void ResponseAnswer::on_event(size_t, const chat::ChatEvent& event) {
  switch (event.kind) {
    case chat::ChatEvent::Kind::kReasoning:
      if (item_ != Item::kReasoning) open(Item::kReasoning, event);
      append(event.text);
      break;
    case chat::ChatEvent::Kind::kText:
      if (item_ != Item::kMessage) open(Item::kMessage, event);
      append(event.text);
      break;
    case chat::ChatEvent::Kind::kToolCall:
      open(Item::kCall, event);
      break;
    case chat::ChatEvent::Kind::kToolArguments:
      append(event.text);
      break;
  }
}

void ResponseAnswer::open(Item item, const chat::ChatEvent& event) {
  close("completed");
  item_ = item;
  text_.clear();
  item_logprobs_ = Json::array();
  if (item == Item::kCall) return open_call(event);
  if (item == Item::kMessage) {
    shown_ = {{"id", random_id("msg_")},
              {"type", "message"},
              {"status", "in_progress"},
              {"role", "assistant"},
              {"content", Json::array()}};
  } else {
    shown_ = {{"id", random_id("rs_")}, {"type", "reasoning"}, {"summary", Json::array()}};
    if (!summary_) shown_["content"] = Json::array();
    shown_["status"] = "in_progress";
  }
  if (!stream_) return;
  emit("response.output_item.added", {{"output_index", response_["output"].size()}, {"item", shown_}});
  const bool summary = item == Item::kReasoning && summary_;
  Json at = at_part(summary ? "summary_index" : "content_index");
  at["part"] = text_part();
  emit(summary ? "response.reasoning_summary_part.added" : "response.content_part.added", std::move(at));
}

void ResponseAnswer::open_call(const chat::ChatEvent& event) {
  const auto tool = tools_.find(event.name);
  custom_ = tool != tools_.end() && tool->second.custom;
  shown_ = {{"id", random_id(custom_ ? "ctc_" : "fc_")},
            {"type", custom_ ? "custom_tool_call" : "function_call"},
            {"status", "in_progress"},
            {"call_id", event.id},
            {"name", tool == tools_.end() ? event.name : tool->second.name},
            {custom_ ? "input" : "arguments", ""}};
  if (tool != tools_.end() && !tool->second.name_space.empty()) shown_["namespace"] = tool->second.name_space;
  if (stream_)
    emit("response.output_item.added", {{"output_index", response_["output"].size()}, {"item", shown_}});
}

// The item's part so far; empty when it is announced.
Json ResponseAnswer::text_part() const {
  if (item_ == Item::kMessage) {
    return {{"type", "output_text"},
            {"annotations", Json::array()},
            {"logprobs", item_logprobs_},
            {"text", text_}};
  }
  return {{"type", summary_ ? "summary_text" : "reasoning_text"}, {"text", text_}};
}

void ResponseAnswer::append(const std::string& text) {
  text_ += text;
  Json logprobs = std::exchange(new_logprobs_, Json::array());
  if (item_ == Item::kMessage && logprobs_) {
    for (const Json& entry : logprobs) item_logprobs_.push_back(entry);
  }
  if (!stream_ || item_ == Item::kNone || text.empty()) return;
  switch (item_) {
    case Item::kNone:
      break;
    case Item::kReasoning: {
      Json at = at_part(summary_ ? "summary_index" : "content_index");
      at["delta"] = text;
      emit(summary_ ? "response.reasoning_summary_text.delta" : "response.reasoning_text.delta",
           std::move(at));
      break;
    }
    case Item::kMessage: {
      Json at = at_part("content_index");
      at["delta"] = text;
      at["logprobs"] = std::move(logprobs);
      emit("response.output_text.delta", std::move(at));
      break;
    }
    case Item::kCall:
      // A custom tool's text is known once the arguments that it stands in are whole.
      if (!custom_) {
        Json at = at_item();
        at["delta"] = text;
        emit("response.function_call_arguments.delta", std::move(at));
      }
      break;
  }
}

void ResponseAnswer::close(const char* status) {
  if (item_ == Item::kNone) return;
  if (item_ == Item::kReasoning) close_reasoning();
  if (item_ == Item::kMessage) close_message();
  if (item_ == Item::kCall) close_call();
  shown_["status"] = status;
  emit("response.output_item.done", {{"output_index", response_["output"].size()}, {"item", shown_}});
  response_["output"].push_back(std::move(shown_));
  item_ = Item::kNone;
}

void ResponseAnswer::close_reasoning() {
  Json at = at_part(summary_ ? "summary_index" : "content_index");
  Json with_text = at;
  with_text["text"] = text_;
  emit(summary_ ? "response.reasoning_summary_text.done" : "response.reasoning_text.done",
       std::move(with_text));
  at["part"] = text_part();
  emit(summary_ ? "response.reasoning_summary_part.done" : "response.content_part.done", std::move(at));
  shown_[summary_ ? "summary" : "content"].push_back(text_part());
}

void ResponseAnswer::close_message() {
  Json at = at_part("content_index");
  Json with_text = at;
  with_text["text"] = text_;
  with_text["logprobs"] = item_logprobs_;
  emit("response.output_text.done", std::move(with_text));
  at["part"] = text_part();
  emit("response.content_part.done", std::move(at));
  shown_["content"].push_back(text_part());
}

void ResponseAnswer::close_call() {
  Json at = at_item();
  if (custom_) {
    const std::string input = custom_input(text_);
    shown_["input"] = input;
    Json delta = at;
    delta["delta"] = input;
    emit("response.custom_tool_call_input.delta", std::move(delta));
    at["input"] = input;
    emit("response.custom_tool_call_input.done", std::move(at));
    return;
  }
  shown_["arguments"] = text_;
  at["name"] = shown_["name"];
  at["arguments"] = text_;
  emit("response.function_call_arguments.done", std::move(at));
}

void ResponseAnswer::finish_with_error(const std::string& message, int status) {
  close("incomplete");
  if (!stream_) {
    exchange_->send(status, "application/json", dump_json(error_json(status, message)));
    return;
  }
  response_["status"] = "failed";
  response_["error"] = {{"code", status >= 500 ? "server_error" : "invalid_prompt"}, {"message", message}};
  emit_response("response.failed");
  exchange_->end();
}

void ResponseAnswer::on_finish(size_t, const ChatFinish& finish) {
  if (finish.reason == ChatFinish::Reason::kError) {
    const ApiError error = to_api_error(Error(finish.error_kind, finish.error));
    return finish_with_error(error.what(), error.status());
  }
  if (finish.reason == ChatFinish::Reason::kCancelled)
    return finish_with_error("the request was cancelled", 503);
  const bool cut = finish.reason == ChatFinish::Reason::kLength;
  if (item_ == Item::kNone && response_["output"].empty()) open(Item::kMessage, {});  // nothing was said
  close(cut ? "incomplete" : "completed");
  response_["status"] = cut ? "incomplete" : "completed";
  if (cut) {
    response_["incomplete_details"] = {{"reason", "max_output_tokens"}};
  } else {
    response_["completed_at"] = unix_seconds();
  }
  response_["usage"] = {
      {"input_tokens", finish.prompt_tokens},
      {"input_tokens_details", {{"cached_tokens", finish.cached_tokens}, {"cache_write_tokens", 0}}},
      {"output_tokens", finish.completion_tokens},
      {"output_tokens_details", {{"reasoning_tokens", finish.reasoning_tokens}}},
      {"total_tokens", finish.prompt_tokens + finish.completion_tokens}};
  const std::string text = dump_json(response_);
  // Before the client knows of it, which may come back at once.
  if (store_) context_.responses.put(tenant_, response_["id"].get<std::string>(), {text, std::move(items_)});
  if (!stream_) {
    exchange_->send(200, "application/json", text);
    return;
  }
  emit_response(cut ? "response.incomplete" : "response.completed");
  exchange_->end();
}

}  // namespace qiao::serve
