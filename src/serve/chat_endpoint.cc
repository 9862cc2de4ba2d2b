// /v1/chat/completions.
#include "serve/chat_answer.h"

namespace qiao::serve {
namespace {

void check_modalities(Fields& fields) {
  for (const std::string& modality : fields.texts("modalities", 4)) {
    if (modality != "text")
      throw_bad_field("modalities", "'{}' is not supported; text is", modality.substr(0, 40));
  }
}

}  // namespace

void chat_completions(ServeContext& context, const HttpRequest& request,
                      const std::shared_ptr<HttpExchange>& exchange) {
  const Json body = parse_body(request);
  Fields fields(body);
  ChatTurn turn;
  turn.adapter = check_model(context, fields);
  turn.tenant = api_key_of(request);
  if (const Json* extra = fields.find("chat_template_kwargs")) {
    if (!extra->is_object())
      throw_bad_field("chat_template_kwargs", "expected an object, got {}", extra->type_name());
    turn.template_variables = *extra;
  }
  if (const auto effort = fields.text("reasoning_effort"))
    turn.template_variables["reasoning_effort"] = *effort;
  const Json* messages = fields.find("messages");
  if (messages == nullptr) throw_bad_field("messages", "is required");
  turn.messages = read_chat_messages(*messages, "messages", context);
  turn.add_generation_prompt = fields.flag("add_generation_prompt", true);
  turn.generation = read_generation_fields(fields, *context.model);
  turn.logprobs = fields.flag("logprobs", false);
  const auto top_logprobs = fields.integer("top_logprobs", 0, 20);
  if (top_logprobs.value_or(0) > 0 && !turn.logprobs)
    throw_bad_field("top_logprobs", "is only allowed with logprobs");
  turn.top_logprobs = static_cast<int32_t>(top_logprobs.value_or(0));
  const auto max_tokens = fields.integer("max_tokens", 1, kMaxTokensLimit);
  const auto max_completion_tokens = fields.integer("max_completion_tokens", 1, kMaxTokensLimit);
  turn.max_tokens = max_completion_tokens ? *max_completion_tokens : max_tokens.value_or(-1);
  turn.format = read_output_format(fields);
  check_modalities(fields);
  if (const Json* tools = fields.find("tools")) {
    check_tools(*tools, "tools");
    turn.tools = *tools;
  }
  if (const Json* choice = fields.find("tool_choice"))
    turn.tool_choice = read_tool_choice(*choice, "tool_choice", turn.tools);
  turn.parallel_tool_calls = fields.flag("parallel_tool_calls", true);
  fields.refuse({"functions", "function_call"}, "is OpenAI's older form and not supported; tools are");
  fields.refuse({"audio", "prediction", "web_search_options"}, "is not supported");
  fields.finish();
  const std::shared_ptr<ChatSink> answer = make_chat_answer(context, turn, exchange);
  run_chat(context, std::move(turn), exchange, answer);
}

}  // namespace qiao::serve
