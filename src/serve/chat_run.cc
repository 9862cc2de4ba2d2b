#include "serve/chat_run.h"

#include <mutex>

namespace qiao::serve {
namespace {

// The choices of one chat while the engine fills them. Kept alive by the engine's callbacks.
class ChatRun : public std::enable_shared_from_this<ChatRun> {
 public:
  ChatRun(ServeContext& context, std::shared_ptr<ChatSink> sink, bool logprobs)
      : context_(context), sink_(std::move(sink)), logprobs_(logprobs) {}

  // What submit throws is thrown, and the sink hears of nothing then.
  void start(std::vector<GenerationRequest> requests, const chat::ChatFormat& format, const Json& tools,
             bool in_thoughts, HttpExchange& exchange) {
    const auto group = std::make_shared<CancelGroup>();
    const std::lock_guard lock(mutex_);  // events wait until the answer has begun
    for (size_t i = 0; i < requests.size(); ++i) choices_.emplace_back(format, tools, in_thoughts);
    try {
      for (size_t i = 0; i < requests.size(); ++i) {
        group->add(context_.engine.submit(
            std::move(requests[i]),
            [self = shared_from_this(), i](const GenerationEvent& event) { self->on_event(i, event); }));
      }
    } catch (const Error&) {
      group->cancel();
      abandoned_ = true;
      throw;
    }
    sink_->on_begin();
    exchange.on_close([group] { group->cancel(); });
  }

 private:
  struct Choice {
    Choice(const chat::ChatFormat& format, const Json& tools, bool in_thoughts)
        : parser(format, tools, in_thoughts) {}
    chat::ChatParser parser;
    int64_t reasoning_tokens = 0;
  };

  void on_event(size_t index, const GenerationEvent& event) {
    const std::lock_guard lock(mutex_);
    const bool last = event.finish != FinishReason::kNone;
    if (last) context_.metrics.count_generation(event);
    if (abandoned_) return;
    Choice& choice = choices_[index];
    if (logprobs_ && event.has_token) sink_->on_token(index, event);
    events_.clear();
    if (event.has_token && choice.parser.in_thoughts()) ++choice.reasoning_tokens;
    choice.parser.push(event.text, events_);
    if (last) choice.parser.finish(events_);
    for (const chat::ChatEvent& part : events_) sink_->on_event(index, part);
    if (last) sink_->on_finish(index, finish_of(choice, event));
  }

  static ChatFinish finish_of(const Choice& choice, const GenerationEvent& event) {
    ChatFinish finish;
    switch (event.finish) {
      case FinishReason::kNone:
      case FinishReason::kStop:
        finish.reason =
            choice.parser.tool_calls() > 0 ? ChatFinish::Reason::kToolCalls : ChatFinish::Reason::kStop;
        break;
      case FinishReason::kLength:
        finish.reason = ChatFinish::Reason::kLength;
        break;
      case FinishReason::kCancelled:
        finish.reason = ChatFinish::Reason::kCancelled;
        break;
      case FinishReason::kError:
        finish.reason = ChatFinish::Reason::kError;
        break;
    }
    finish.error = event.error;
    finish.stop_text = event.stop_text;
    finish.prompt_tokens = event.prompt_tokens;
    finish.cached_tokens = event.cached_tokens;
    finish.completion_tokens = event.completion_tokens;
    finish.reasoning_tokens = choice.reasoning_tokens;
    return finish;
  }

  ServeContext& context_;
  const std::shared_ptr<ChatSink> sink_;
  const bool logprobs_;
  std::mutex mutex_;
  bool abandoned_ = false;
  std::vector<Choice> choices_;
  std::vector<chat::ChatEvent> events_;
};

std::string render_turn(const ServeContext& context, const ChatTurn& turn) {
  Json variables = turn.template_variables;
  variables["messages"] = turn.messages;
  variables["add_generation_prompt"] = turn.add_generation_prompt;
  return context.model->render_chat(std::move(variables));
}

}  // namespace

void run_chat(ServeContext& context, ChatTurn turn, const std::shared_ptr<HttpExchange>& exchange,
              std::shared_ptr<ChatSink> sink) {
  const std::string prompt = render_turn(context, turn);
  const bool in_thoughts = chat::opens_thoughts(context.chat_format, prompt);

  GenerationRequest generation;
  generation.tenant = turn.tenant;
  generation.adapter = turn.adapter;
  generation.prompt = context.model->encode_rendered_chat(prompt);
  generation.sampling = turn.generation.sampling;
  generation.stop = turn.generation.stop;
  generation.ignore_eos = turn.generation.ignore_eos;
  generation.max_tokens = turn.max_tokens;
  generation.logprobs = turn.logprobs;
  generation.top_logprobs = turn.top_logprobs;
  std::vector<GenerationRequest> requests(static_cast<size_t>(turn.generation.n), generation);
  for (size_t i = 0; i < requests.size(); ++i) requests[i].choice = static_cast<int32_t>(i);
  std::make_shared<ChatRun>(context, std::move(sink), turn.logprobs)
      ->start(std::move(requests), context.chat_format, turn.tools, in_thoughts, *exchange);
}

int64_t count_chat_tokens(ServeContext& context, const ChatTurn& turn) {
  return static_cast<int64_t>(context.model->encode_rendered_chat(render_turn(context, turn)).size());
}

}  // namespace qiao::serve
