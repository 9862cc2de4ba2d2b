#include "serve/chat_answer.h"
#include "serve/api_error.h"

#include <optional>
#include <utility>

namespace qiao::serve {
namespace {

// {"token", "logprob", "bytes"} of one token.
Json token_json(const Tokenizer& tokenizer, TokenId id, float logprob) {
  const std::string bytes = tokenizer.token_bytes(id);
  return {
      {"token", bytes}, {"logprob", logprob}, {"bytes", std::vector<uint8_t>(bytes.begin(), bytes.end())}};
}

Json reason_json(ChatFinish::Reason reason) {
  switch (reason) {
    case ChatFinish::Reason::kStop:
      return "stop";
    case ChatFinish::Reason::kLength:
      return "length";
    case ChatFinish::Reason::kToolCalls:
      return "tool_calls";
    case ChatFinish::Reason::kCancelled:
    case ChatFinish::Reason::kError:
      break;
  }
  return nullptr;
}

class ChatAnswer final : public ChatSink {
 public:
  ChatAnswer(ServeContext& context, const ChatTurn& turn, std::shared_ptr<HttpExchange> exchange)
      : context_(context),
        exchange_(std::move(exchange)),
        stream_(turn.generation.stream),
        include_usage_(turn.generation.include_usage),
        id_(random_id("chatcmpl-")),
        model_name_(context.served_name(turn.adapter)),
        created_(unix_seconds()),
        choices_(static_cast<size_t>(turn.generation.n)),
        left_(choices_.size()) {}

  void on_begin(int64_t) override {
    if (!stream_) return;
    exchange_->begin(200, "text/event-stream; charset=utf-8", sse_headers());
    for (size_t i = 0; i < choices_.size(); ++i) write_delta(i, {{"role", "assistant"}, {"content", ""}});
  }

  void on_token(size_t index, const GenerationEvent& token) override {
    const Tokenizer& tokenizer = context_.model->tokenizer();
    Json& logprobs = choices_[index].logprobs;
    if (logprobs.is_null()) logprobs = {{"content", Json::array()}, {"refusal", nullptr}};
    Json entry = token_json(tokenizer, token.token, token.logprobs.logprob);
    Json top = Json::array();
    for (const auto& [id, logprob] : token.logprobs.top) top.push_back(token_json(tokenizer, id, logprob));
    entry["top_logprobs"] = std::move(top);
    logprobs["content"].push_back(std::move(entry));
  }

  void on_event(size_t index, const chat::ChatEvent& event) override {
    Choice& choice = choices_[index];
    switch (event.kind) {
      case chat::ChatEvent::Kind::kReasoning:
        if (stream_) return write_delta(index, {{"reasoning_content", event.text}});
        choice.reasoning += event.text;
        return;
      case chat::ChatEvent::Kind::kText:
        if (stream_) return write_delta(index, {{"content", event.text}});
        choice.text += event.text;
        return;
      case chat::ChatEvent::Kind::kToolCall: {
        Json call = {
            {"id", event.id}, {"type", "function"}, {"function", {{"name", event.name}, {"arguments", ""}}}};
        ++choice.calls_begun;
        if (stream_) return write_call(index, call);
        choice.calls.push_back(std::move(call));
        return;
      }
      case chat::ChatEvent::Kind::kToolArguments:
        if (stream_) return write_call(index, {{"function", {{"arguments", event.text}}}});
        choice.calls.back()["function"]["arguments"].get_ref<std::string&>() += event.text;
        return;
    }
  }

  void on_finish(size_t index, const ChatFinish& finish) override {
    Choice& choice = choices_[index];
    choice.reason = finish.reason;
    if (index == 0) {  // choices of one prompt count its tokens once
      usage_.prompt_tokens = finish.prompt_tokens;
      usage_.cached_tokens = finish.cached_tokens;
    }
    usage_.completion_tokens += finish.completion_tokens;
    usage_.reasoning_tokens = usage_.reasoning_tokens.value_or(0) + finish.reasoning_tokens;
    if (finish.reason == ChatFinish::Reason::kError)
      error_ = to_api_error(Error(finish.error_kind, finish.error));
    if (stream_ && !reason_json(finish.reason).is_null()) {
      if (!choice.logprobs.is_null()) write_delta(index, {{"content", ""}});
      write_delta(index, Json::object(), reason_json(finish.reason));
    }
    if (--left_ == 0) finish_all();
  }

 private:
  struct Choice {
    std::string text, reasoning;
    Json calls = Json::array();
    size_t calls_begun = 0;
    Json logprobs;  // of a stream: those not yet written
    ChatFinish::Reason reason = ChatFinish::Reason::kStop;
  };

  Json head(const char* object) const {
    return {{"id", id_},
            {"object", object},
            {"created", created_},
            {"model", model_name_},
            {"system_fingerprint", "qiao"}};
  }

  void write_delta(size_t index, Json delta, Json reason = nullptr) {
    Json chunk = head("chat.completion.chunk");
    Json logprobs = std::exchange(choices_[index].logprobs, nullptr);
    chunk["choices"] = Json::array({{{"index", index},
                                     {"delta", std::move(delta)},
                                     {"logprobs", std::move(logprobs)},
                                     {"finish_reason", std::move(reason)}}});
    if (include_usage_) chunk["usage"] = nullptr;
    exchange_->write(sse(chunk));
  }

  void write_call(size_t index, const Json& part) {
    Json call = {{"index", choices_[index].calls_begun - 1}};
    call.update(part);
    write_delta(index, {{"tool_calls", Json::array({std::move(call)})}});
  }

  Json whole_choice(size_t index) {
    Choice& choice = choices_[index];
    Json message = {{"role", "assistant"}, {"content", nullptr}, {"refusal", nullptr}};
    if (!choice.text.empty() || choice.calls.empty()) message["content"] = choice.text;
    if (!choice.reasoning.empty()) message["reasoning_content"] = choice.reasoning;
    if (!choice.calls.empty()) message["tool_calls"] = std::move(choice.calls);
    return {{"index", index},
            {"message", std::move(message)},
            {"logprobs", std::move(choice.logprobs)},
            {"finish_reason", reason_json(choice.reason)}};
  }

  void finish_all() {
    if (error_) {
      const Json error = error_->to_json();
      if (!stream_) return exchange_->send(error_->status(), "application/json", dump_json(error));
      exchange_->write(sse(error));
      return exchange_->end();
    }
    if (stream_) {
      if (include_usage_) {
        Json chunk = head("chat.completion.chunk");
        chunk["choices"] = Json::array();
        chunk["usage"] = usage_.to_json();
        exchange_->write(sse(chunk));
      }
      exchange_->write(kSseDone);
      return exchange_->end();
    }
    Json whole = head("chat.completion");
    whole["choices"] = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) whole["choices"].push_back(whole_choice(i));
    whole["usage"] = usage_.to_json();
    send_json(exchange_, whole);
  }

  ServeContext& context_;
  const std::shared_ptr<HttpExchange> exchange_;
  const bool stream_, include_usage_;
  const std::string id_;
  const std::string model_name_;
  const int64_t created_;
  std::vector<Choice> choices_;
  size_t left_;
  Usage usage_;
  std::optional<ApiError> error_;
};

}  // namespace

std::shared_ptr<ChatSink> make_chat_answer(ServeContext& context, const ChatTurn& turn,
                                           std::shared_ptr<HttpExchange> exchange) {
  return std::make_shared<ChatAnswer>(context, turn, std::move(exchange));
}

}  // namespace qiao::serve
