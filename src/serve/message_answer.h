// A chat's answer as /v1/messages writes it.
#pragma once

#include <memory>
#include <string>

#include "serve/messages_fields.h"

namespace qiao::serve {

// Whole or as a stream of events, as the request says.
class MessageAnswer final : public ChatSink {
 public:
  MessageAnswer(ServeContext& context, const MessagesRequest& request, std::shared_ptr<HttpExchange> exchange,
                std::string request_id);

  void on_begin(int64_t prompt_tokens) override;
  void on_event(size_t choice, const chat::ChatEvent& event) override;
  void on_finish(size_t choice, const ChatFinish& finish) override;

 private:
  enum class Block { kNone, kThinking, kText, kToolUse };

  void open(Block block, const chat::ChatEvent& event);
  void append(const std::string& text);
  void close();
  void emit(const char* type, Json fields);
  void finish_with_error(const std::string& message, int status);

  const std::shared_ptr<HttpExchange> exchange_;
  const bool stream_, show_thinking_;
  const int64_t max_tokens_;
  const std::string request_id_;
  Json message_;
  Block block_ = Block::kNone;
  Json content_;      // the block as it began
  std::string text_;  // its text, thoughts or input so far
};

// Errors as Anthropic's API reports them: {"type": "error", "error": {"type", "message"}, "request_id"}.
// 503 becomes their 529.
int message_error_status(int status);
Json message_error_json(int status, std::string_view message, std::string_view request_id);

}  // namespace qiao::serve
