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
             chat::Thoughts thoughts, HttpExchange& exchange) {
    const auto prompt_tokens = static_cast<int64_t>(requests[0].prompt.size());
    const auto group = std::make_shared<CancelGroup>();
    const std::lock_guard lock(mutex_);  // events wait until the answer has begun
    for (size_t i = 0; i < requests.size(); ++i) choices_.emplace_back(format, tools, thoughts);
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
    sink_->on_begin(prompt_tokens);
    exchange.on_close([group] { group->cancel(); });
  }

 private:
  struct Choice {
    Choice(const chat::ChatFormat& format, const Json& tools, chat::Thoughts thoughts)
        : parser(format, tools, thoughts) {}
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
    finish.error_kind = event.error_kind;
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

// Whether the answer may hold calls.
bool offers_tools(const ChatTurn& turn) {
  return !turn.tools.empty() && turn.tool_choice.kind != chat::ToolChoice::Kind::kNone;
}

std::string render_turn(const ServeContext& context, const ChatTurn& turn) {
  Json variables = turn.template_variables;
  variables.update(chat::chat_variables(context.chat_format, turn.messages,
                                        offers_tools(turn) ? turn.tools : Json::array()));
  variables["add_generation_prompt"] = turn.add_generation_prompt;
  std::string prompt = context.model->render_chat(std::move(variables));
  if (turn.answer_start.empty()) return prompt;
  if (chat::thoughts_after(context.chat_format, prompt) == chat::Thoughts::kOpen)
    prompt += context.chat_format.think_end + "\n\n";
  return prompt + turn.answer_start;
}

// A tool's schema by itself: its errors name the tool, and what is malformed is found before it is taken
// apart.
void check_parameters(ServeContext& context, const ChatTurn& turn) {
  for (size_t i = 0; i < turn.tools.size(); ++i) {
    const Json& function = turn.tools[i]["function"];
    if (!function.contains("parameters") || function["parameters"].empty()) continue;
    const std::string field = fmt::format("{}[{}].function.parameters", turn.tools_field, i);
    const OutputFormat format{
        .kind = OutputFormat::Kind::kJsonSchema, .schema = function["parameters"], .field = field};
    compile_output_format(context, format);
  }
}

// What the answer must look like; null: anything.
std::shared_ptr<constrain::CompiledGrammar> compile_answer(ServeContext& context, const ChatTurn& turn,
                                                           chat::Thoughts thoughts) {
  const bool tools = offers_tools(turn);
  const bool formatted = turn.format.kind != OutputFormat::Kind::kText;
  if (tools && formatted && turn.tool_choice.kind != chat::ToolChoice::Kind::kAuto) {
    throw_bad_field(
        "tool_choice", "'{}' is not allowed together with {}: no answer can be both",
        turn.tool_choice.kind == chat::ToolChoice::Kind::kNamed ? turn.tool_choice.name : "required",
        turn.format.field);
  }
  if (!tools && thoughts == chat::Thoughts::kNone) return compile_output_format(context, turn.format);
  if (!tools && !formatted) return nullptr;
  const OutputFormat& format = turn.format;
  const Json key = {"chat",
                    static_cast<int>(thoughts),
                    static_cast<int>(format.kind),
                    format.schema,
                    format.source,
                    format.choices,
                    tools ? turn.tools : Json::array(),
                    turn.tools_field,
                    static_cast<int>(turn.tool_choice.kind),
                    turn.tool_choice.name,
                    turn.parallel_tool_calls};
  return context.grammars.get(dump_json(key), [&] {
    if (formatted) compile_output_format(context, format);  // errors name the field
    constrain::Structure answer = output_structure(format);
    if (tools) {
      check_parameters(context, turn);
      answer = chat::tool_structure(context.chat_format, turn.tools, turn.tools_field, turn.tool_choice,
                                    turn.parallel_tool_calls, std::move(answer));
    }
    return constrain::compile_structure(chat::with_thoughts(context.chat_format, thoughts, std::move(answer)),
                                        tools ? turn.tools_field : format.field);
  });
}

// Whether one of the chat's markers is a control token, whose text is hidden otherwise.
bool needs_special_text(const ServeContext& context, const ChatTurn& turn) {
  if (offers_tools(turn)) return true;
  const Tokenizer& tokenizer = context.model->tokenizer();
  for (const std::string* marker : {&context.chat_format.think_begin, &context.chat_format.think_end}) {
    const std::string_view text = std::string_view(*marker).substr(0, marker->find_first_of(">]") + 1);
    if (text.empty()) continue;
    if (const auto id = tokenizer.find_token(text); id && tokenizer.is_control(*id)) return true;
  }
  return false;
}

}  // namespace

void run_chat(ServeContext& context, ChatTurn turn, const std::shared_ptr<HttpExchange>& exchange,
              std::shared_ptr<ChatSink> sink) {
  for (const Json& message : turn.messages) {  // before a template copies what is hopeless
    const auto content = message.find("content");
    if (content != message.end() && content->is_string())
      check_text_fits(context, content->get_ref<const std::string&>(), turn.prompt_field);
  }
  const std::string prompt = render_turn(context, turn);
  check_text_fits(context, prompt, turn.prompt_field);
  // An answer that the client has begun is past its thoughts.
  const chat::Thoughts thoughts =
      turn.answer_start.empty() ? chat::thoughts_after(context.chat_format, prompt) : chat::Thoughts::kNone;

  GenerationRequest generation;
  generation.tenant = turn.tenant;
  generation.adapter = turn.adapter;
  generation.prompt = context.model->encode_rendered_chat(prompt);
  generation.grammar = compile_answer(context, turn, thoughts);
  generation.special_text = needs_special_text(context, turn);
  generation.sampling = turn.generation.sampling;
  generation.stop = turn.generation.stop;
  generation.ignore_eos = turn.generation.ignore_eos;
  generation.max_tokens = turn.max_tokens;
  generation.logprobs = turn.logprobs;
  generation.top_logprobs = turn.top_logprobs;
  std::vector<GenerationRequest> requests(static_cast<size_t>(turn.generation.n), generation);
  for (size_t i = 0; i < requests.size(); ++i) requests[i].choice = static_cast<int32_t>(i);
  chat::ChatFormat format = context.chat_format;
  format.several_calls = format.several_calls && turn.parallel_tool_calls;
  // Where JSON is asked for, an object is an answer; and what goes on with one does not begin it.
  format.unmarked_calls = turn.format.kind == OutputFormat::Kind::kText && turn.answer_start.empty();
  try {
    std::make_shared<ChatRun>(context, std::move(sink), turn.logprobs)
        ->start(std::move(requests), format, offers_tools(turn) ? turn.tools : Json::array(), thoughts,
                *exchange);
  } catch (const Error& e) {
    // The engine speaks of its own field.
    constexpr std::string_view kPrompt = "prompt: ";
    const std::string_view what = e.what();
    if (!what.starts_with(kPrompt)) throw;
    throw ApiError(400, fmt::format("{}: {}", turn.prompt_field, what.substr(kPrompt.size())),
                   turn.prompt_field, "context_length_exceeded");
  }
}

int64_t count_chat_tokens(ServeContext& context, const ChatTurn& turn) {
  return static_cast<int64_t>(context.model->encode_rendered_chat(render_turn(context, turn)).size());
}

}  // namespace qiao::serve
