// /v1/chat/completions.
#include <algorithm>

#include "serve/answer.h"

namespace qiao::serve {
namespace {

constexpr size_t kMaxMessages = 10'000;

// {"token", "logprob", "bytes"} of one token.
Json token_json(const Tokenizer& tokenizer, TokenId id, float logprob) {
  const std::string bytes = tokenizer.token_bytes(id);
  return {
      {"token", bytes}, {"logprob", logprob}, {"bytes", std::vector<uint8_t>(bytes.begin(), bytes.end())}};
}

class ChatAnswer final : public Answer {
 public:
  ChatAnswer(ServeContext& context, std::shared_ptr<HttpExchange> exchange, const GenerationFields& fields,
             bool logprobs)
      : Answer(context, std::move(exchange), fields, "chatcmpl-") {
    wants_logprobs_ = logprobs;
  }

 private:
  const char* object_name(bool chunk) const override {
    return chunk ? "chat.completion.chunk" : "chat.completion";
  }
  bool leads_prompt(size_t index) const override { return index == 0; }

  void add_logprobs(Json& logprobs, size_t, const GenerationEvent& event, const std::string&) override {
    if (logprobs.is_null()) logprobs = {{"content", Json::array()}, {"refusal", nullptr}};
    Json entry = token_json(tokenizer(), event.token, event.logprobs.logprob);
    Json top = Json::array();
    for (const auto& [id, logprob] : event.logprobs.top) top.push_back(token_json(tokenizer(), id, logprob));
    entry["top_logprobs"] = std::move(top);
    logprobs["content"].push_back(std::move(entry));
  }

  Json first_choice(size_t index) const override {
    return {{"index", index},
            {"delta", {{"role", "assistant"}, {"content", ""}}},
            {"logprobs", nullptr},
            {"finish_reason", nullptr}};
  }

  Json chunk_choice(size_t index, const std::string& text, const Json& logprobs,
                    FinishReason finish) const override {
    Json delta = Json::object();
    if (finish == FinishReason::kNone) delta["content"] = text;
    return {{"index", index},
            {"delta", delta},
            {"logprobs", logprobs},
            {"finish_reason", finish_reason_json(finish)}};
  }

  Json whole_choice(size_t index, const Choice& choice) const override {
    return {{"index", index},
            {"message", {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}}},
            {"logprobs", choice.logprobs},
            {"finish_reason", finish_reason_json(choice.finish)}};
  }
};

// A message's content as one text: a string, or parts of which only texts can be read here.
std::string content_text(const Json& content, const std::string& field) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    throw_bad_field(field, "expected a string or a list of parts, got {}", content.type_name());
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    Fields part(content[i], fmt::format("{}[{}].", field, i));
    const std::string type = part.required_text("type");
    if (type != "text" && type != "refusal") {
      throw ApiError(400,
                     fmt::format("{}: parts of type '{}' cannot be read by this model; only text can",
                                 part.full_name("type"), type.substr(0, 40)),
                     part.full_name("type"), "unsupported_content");
    }
    if (i > 0) text += '\n';
    text += part.required_text(type);
  }
  return text;
}

Json read_messages(Fields& fields, const LanguageModel& model) {
  const Json* messages = fields.find("messages");
  if (messages == nullptr) throw_bad_field("messages", "is required");
  if (!messages->is_array() || messages->empty())
    throw_bad_field("messages", "expected a list of one or more messages");
  if (messages->size() > kMaxMessages) {
    throw_bad_field("messages", "has {} entries; at most {} are allowed", messages->size(), kMaxMessages);
  }
  const ChatTemplate* chat_template = model.chat_template();
  const bool knows_developer =
      chat_template != nullptr && chat_template->source().find("developer") != std::string::npos;
  Json list = Json::array();
  for (size_t i = 0; i < messages->size(); ++i) {
    const std::string path = fmt::format("messages[{}].", i);
    Fields message((*messages)[i], path);
    std::string role = message.required_text("role");
    constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
    if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
      throw_bad_field(path + "role", "'{}' is not allowed; system, developer, user, assistant and tool are",
                      role.substr(0, 40));
    }
    if (role == "developer" && !knows_developer) role = "system";
    const Json* content = message.find("content");
    Json out = {{"role", role}};
    const Json* calls = role == "assistant" ? message.find("tool_calls") : nullptr;
    if (content != nullptr) {
      out["content"] = content_text(*content, path + "content");
    } else if (calls == nullptr) {
      throw_bad_field(path + "content", "is required");
    }
    if (calls != nullptr) out["tool_calls"] = *calls;
    for (const char* key : {"name", "tool_call_id", "reasoning_content"}) {
      if (const auto value = message.text(key)) out[key] = *value;
    }
    message.ignore({"refusal", "annotations", "audio"});
    message.finish();
    list.push_back(std::move(out));
  }
  return list;
}

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
  const LanguageModel& model = *context.model;
  Json variables = Json::object();
  if (const Json* extra = fields.find("chat_template_kwargs")) {
    if (!extra->is_object())
      throw_bad_field("chat_template_kwargs", "expected an object, got {}", extra->type_name());
    variables = *extra;
  }
  if (const auto effort = fields.text("reasoning_effort")) variables["reasoning_effort"] = *effort;
  variables["messages"] = read_messages(fields, model);
  variables["add_generation_prompt"] = fields.flag("add_generation_prompt", true);
  const GenerationFields common = read_generation_fields(fields, model);
  const bool logprobs = fields.flag("logprobs", false);
  const auto top_logprobs = fields.integer("top_logprobs", 0, 20);
  if (top_logprobs.value_or(0) > 0 && !logprobs)
    throw_bad_field("top_logprobs", "is only allowed with logprobs");
  const auto max_tokens = fields.integer("max_tokens", 1, kMaxTokensLimit);
  const auto max_completion_tokens = fields.integer("max_completion_tokens", 1, kMaxTokensLimit);
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

  GenerationRequest generation;
  generation.tenant = api_key_of(request);
  generation.prompt = model.encode_chat(std::move(variables));
  generation.sampling = common.sampling;
  generation.stop = common.stop;
  generation.ignore_eos = common.ignore_eos;
  generation.max_tokens = max_completion_tokens ? *max_completion_tokens : max_tokens.value_or(-1);
  generation.logprobs = logprobs;
  generation.top_logprobs = static_cast<int32_t>(top_logprobs.value_or(0));
  std::vector<GenerationRequest> requests(static_cast<size_t>(common.n), generation);
  for (size_t i = 0; i < requests.size(); ++i) requests[i].choice = static_cast<int32_t>(i);
  std::make_shared<ChatAnswer>(context, exchange, common, logprobs)->start(std::move(requests));
}

}  // namespace qiao::serve
