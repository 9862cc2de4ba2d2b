// A chat's answer as /v1/responses writes it.
#pragma once

#include <memory>
#include <string>

#include "serve/responses_fields.h"

namespace qiao::serve {

// Whole or as a stream of events, as the request says; stored where it says so.
class ResponseAnswer final : public ChatSink {
 public:
  // Takes all of the request but its turn.
  ResponseAnswer(ServeContext& context, ResponsesRequest& request, std::shared_ptr<HttpExchange> exchange);

  void on_begin(int64_t prompt_tokens) override;
  void on_event(size_t choice, const chat::ChatEvent& event) override;
  void on_token(size_t choice, const GenerationEvent& token) override;
  void on_finish(size_t choice, const ChatFinish& finish) override;

 private:
  // The output item in work.
  enum class Item { kNone, kReasoning, kMessage, kCall };

  void open(Item item, const chat::ChatEvent& event);
  void open_call(const chat::ChatEvent& event);
  void append(const std::string& text);
  void close(const char* status);
  void close_reasoning();
  void close_message();
  void close_call();
  // An event of the stream; `position` adds item_id, output_index and, with `part` >= 0, content_index.
  void emit(const char* type, Json fields);
  Json at_item() const;
  Json at_part(const char* index_name) const;
  Json text_part() const;
  void emit_response(const char* type);
  void finish_with_error(const std::string& message, int status);

  ServeContext& context_;
  const std::shared_ptr<HttpExchange> exchange_;
  const bool stream_, store_, summary_, logprobs_;
  const std::string tenant_;
  const OfferedTools tools_;
  std::string items_;
  Json response_;
  int64_t sequence_ = 0;

  Item item_ = Item::kNone;
  Json shown_;        // the item as it was announced
  std::string text_;  // its text, arguments or thoughts so far
  bool custom_ = false;
  Json item_logprobs_ = Json::array(), new_logprobs_ = Json::array();
};

}  // namespace qiao::serve
