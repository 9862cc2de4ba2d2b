// The answer to one completion request, plain or streamed, while the engine fills its choices.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "serve/api_error.h"
#include "serve/generation_fields.h"
#include "serve/server.h"

namespace qiao::serve {

// Chat and text completions differ in how a choice is written down; the rest is here. Made by make_shared;
// kept alive by the engine's callbacks.
class Answer : public std::enable_shared_from_this<Answer> {
 public:
  Answer(ServeContext& context, std::shared_ptr<HttpExchange> exchange, const GenerationFields& fields,
         std::string_view id_prefix);
  virtual ~Answer() = default;

  // Submits one request a choice (in order) and, once all are taken, begins the stream. What submit throws is
  // thrown.
  void start(std::vector<GenerationRequest> requests);

 protected:
  // One choice so far. The whole answer is made of them.
  struct Choice {
    std::string text;
    Json logprobs;  // as the endpoint keeps it; null without
    FinishReason finish = FinishReason::kNone;
    Metrics::LastToken last_token;
  };
  virtual const char* object_name(bool chunk) const = 0;
  // Adds the event's log-probabilities to `logprobs` (null at first). Only called where they were asked for.
  virtual void add_logprobs(Json& logprobs, size_t index, const GenerationEvent& event,
                            const std::string& text) = 0;
  virtual Json chunk_choice(size_t index, const std::string& text, const Json& logprobs,
                            FinishReason finish) const = 0;
  virtual Json whole_choice(size_t index, const Choice& choice) const = 0;
  // What a stream shows of a choice before its first token ("role", an echoed prompt); null: nothing.
  virtual Json first_choice(size_t index) const = 0;
  // Text that stands before the generated text (an echoed prompt).
  virtual std::string leading_text(size_t) const { return {}; }
  // Whether this is the first choice of its prompt, which counts the prompt's tokens.
  virtual bool leads_prompt(size_t index) const = 0;

  const Tokenizer& tokenizer() const { return context_.model->tokenizer(); }
  bool wants_logprobs_ = false;

 private:
  void on_event(size_t index, const GenerationEvent& event);
  void finish_all();
  void write_chunk(Json choice);
  Json head(bool chunk) const;

  ServeContext& context_;
  const std::shared_ptr<HttpExchange> exchange_;
  const bool stream_, include_usage_;
  const std::string id_;
  const int64_t created_;
  std::string model_name_;
  std::mutex mutex_;
  std::vector<Choice> choices_;

  size_t left_ = 0;
  Usage usage_;
  std::optional<ApiError> error_;
};

}  // namespace qiao::serve
