// /v1/chat/completions.
#include "serve/chat_answer.h"

namespace qiao::serve {
namespace {

// response_format: only plain text for now.
void check_response_format(Fields& fields) {
  const Json* format = fields.find("response_format");
  if (format == nullptr) return;
  Fields inner(*format, "response_format.");
  const std::string type = inner.required_text("type");
  if (type != "text") {
    throw ApiError(
        400, fmt::format("response_format.type: '{}' is not supported yet; text is", type.substr(0, 40)),
        "response_format.type", "unsupported_parameter");
  }
}

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
  check_model(context, fields);
  ChatTurn turn;
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
  check_response_format(fields);
  check_modalities(fields);
  if (const Json* choice = fields.find("tool_choice");
      choice != nullptr && *choice != Json("none") && *choice != Json("auto")) {
    throw ApiError(400, "tool_choice: is not supported yet", "tool_choice", "unsupported_parameter");
  }
  fields.ignore({"parallel_tool_calls"});
  fields.refuse({"tools", "functions", "function_call", "audio", "prediction", "web_search_options",
                 "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar", "json_schema"},
                "is not supported yet");
  fields.finish();
  const std::shared_ptr<ChatSink> answer = make_chat_answer(context, turn, exchange);
  run_chat(context, std::move(turn), exchange, answer);
}

}  // namespace qiao::serve
