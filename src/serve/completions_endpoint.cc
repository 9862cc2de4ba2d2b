// /v1/completions.
#include "serve/answer.h"
#include "serve/chat_run.h"

namespace qiao::serve {
namespace {

constexpr size_t kMaxPrompts = 512;
constexpr int64_t kDefaultMaxTokens = 16;  // OpenAI's

class TextAnswer final : public Answer {
 public:
  struct Prompt {
    std::string text;  // what an echo shows
    std::vector<TokenId> ids;
  };
  TextAnswer(ServeContext& context, std::shared_ptr<HttpExchange> exchange, const GenerationFields& fields,
             std::vector<Prompt> prompts, bool echo, bool logprobs)
      : Answer(context, std::move(exchange), fields, "cmpl-"),
        prompts_(std::move(prompts)),
        choices_per_prompt_(static_cast<size_t>(fields.n)),
        echo_(echo),
        offsets_(prompts_.size() * choices_per_prompt_) {
    wants_logprobs_ = logprobs;
  }

 private:
  const char* object_name(bool) const override { return "text_completion"; }
  bool leads_prompt(size_t index) const override { return index % choices_per_prompt_ == 0; }
  const Prompt& prompt_of(size_t index) const { return prompts_[index / choices_per_prompt_]; }
  std::string leading_text(size_t index) const override {
    return echo_ ? prompt_of(index).text : std::string();
  }

  Json first_choice(size_t index) const override {
    return echo_ ? chunk_choice(index, prompt_of(index).text, nullptr, FinishReason::kNone) : Json(nullptr);
  }

  void add_token(Json& logprobs, size_t index, TokenId id, const TokenLogprobs* values) {
    if (logprobs.is_null()) {
      logprobs = {{"tokens", Json::array()},
                  {"token_logprobs", Json::array()},
                  {"top_logprobs", Json::array()},
                  {"text_offset", Json::array()}};
    }
    const std::string text = tokenizer().token_bytes(id);
    logprobs["tokens"].push_back(text);
    logprobs["token_logprobs"].push_back(values == nullptr ? Json(nullptr) : Json(values->logprob));
    Json top(nullptr);
    if (values != nullptr) {
      top = Json::object();
      for (const auto& [other, logprob] : values->top) {
        const std::string spelling = tokenizer().token_bytes(other);
        if (!top.contains(spelling))
          top[spelling] = logprob;  // two ids may be spelled alike: the likelier stays
      }
    }
    logprobs["top_logprobs"].push_back(std::move(top));
    logprobs["text_offset"].push_back(offsets_[index]);
    offsets_[index] += text.size();
  }

  void add_logprobs(Json& logprobs, size_t index, const GenerationEvent& event, const std::string&) override {
    if (!event.prompt_logprobs.empty()) {
      const std::vector<TokenId>& ids = prompt_of(index).ids;
      add_token(logprobs, index, ids[0], nullptr);
      for (size_t i = 0; i < event.prompt_logprobs.size(); ++i) {
        add_token(logprobs, index, ids[i + 1], &event.prompt_logprobs[i]);
      }
    }
    if (event.has_token) add_token(logprobs, index, event.token, &event.logprobs);
  }

  Json chunk_choice(size_t index, const std::string& text, const Json& logprobs,
                    FinishReason finish) const override {
    return {{"index", index},
            {"text", text},
            {"logprobs", logprobs},
            {"finish_reason", finish_reason_json(finish)}};
  }

  Json whole_choice(size_t index, const Choice& choice) const override {
    return chunk_choice(index, choice.text, choice.logprobs, choice.finish);
  }

  std::vector<Prompt> prompts_;
  size_t choices_per_prompt_;
  bool echo_;
  std::vector<size_t> offsets_;  // in the text, of each choice's next token
};

}  // namespace

void completions(ServeContext& context, const HttpRequest& request,
                 const std::shared_ptr<HttpExchange>& exchange) {
  const Json body = parse_body(request);
  Fields fields(body);
  const std::string adapter = check_model(context, fields);
  const LanguageModel& model = *context.model;
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr) throw_bad_field("prompt", "is required");
  std::vector<std::vector<TokenId>> ids = prompt_list(context, *prompt, "prompt", kMaxPrompts);
  const GenerationFields common = read_generation_fields(fields, model);
  const bool echo = fields.flag("echo", false);
  const Json* wish = fields.find("logprobs");
  int64_t top_logprobs = -1;
  if (wish != nullptr && wish->is_boolean()) {
    top_logprobs = wish->get<bool>() ? 0 : -1;
  } else {
    top_logprobs = fields.integer("logprobs", 0, 20).value_or(-1);
  }
  const int64_t max_tokens = fields.integer("max_tokens", 0, kMaxTokensLimit).value_or(kDefaultMaxTokens);
  if (const auto best_of = fields.integer("best_of", 1, kMaxChoices); best_of && *best_of != common.n) {
    throw ApiError(400, "best_of: is not supported; it may only equal n", "best_of", "unsupported_parameter");
  }
  const OutputFormat format = read_output_format(fields);
  fields.refuse({"suffix"}, "is not supported yet");
  if (max_tokens == 0 && !echo) throw_bad_field("max_tokens", "0 is only allowed with echo");
  fields.finish();
  if (ids.size() * static_cast<size_t>(common.n) > kMaxPrompts) {
    throw_bad_field("n", "{} prompts of {} choices are more than {}", ids.size(), common.n, kMaxPrompts);
  }

  const bool logprobs = top_logprobs >= 0;
  const std::shared_ptr<constrain::CompiledGrammar> grammar = compile_output_format(context, format);
  std::vector<GenerationRequest> requests;
  std::vector<TextAnswer::Prompt> prompts;
  for (size_t p = 0; p < ids.size(); ++p) {
    const Json& entry =
        prompt->is_array() && !prompt->empty() && !(*prompt)[0].is_number() ? (*prompt)[p] : *prompt;
    prompts.push_back(
        {entry.is_string() ? entry.get<std::string>() : model.tokenizer().decode(ids[p], false), ids[p]});
    for (int64_t choice = 0; choice < common.n; ++choice) {
      GenerationRequest generation;
      generation.tenant = api_key_of(request);
      generation.adapter = adapter;
      generation.prompt = ids[p];
      generation.sampling = common.sampling;
      generation.choice = static_cast<int32_t>(choice);
      generation.grammar = grammar;
      generation.stop = common.stop;
      generation.ignore_eos = common.ignore_eos;
      generation.max_tokens = max_tokens;
      generation.logprobs = logprobs;
      generation.top_logprobs = static_cast<int32_t>(std::max<int64_t>(top_logprobs, 0));
      generation.prompt_logprobs = echo && logprobs;
      requests.push_back(std::move(generation));
    }
  }
  std::make_shared<TextAnswer>(context, exchange, common, std::move(prompts), echo, logprobs)
      ->start(std::move(requests));
}

}  // namespace qiao::serve
