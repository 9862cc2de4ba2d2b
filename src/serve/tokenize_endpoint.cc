// /tokenize and /detokenize, with llama-server's fields or vLLM's; /tokenizer_info as vLLM has it.
#include "serve/server.h"

namespace qiao::serve {
namespace {

// {"prompt", "add_special_tokens"}: vLLM's, whose BOS token comes unless it is refused.
void tokenize_prompt(const Tokenizer& tokenizer, Fields& fields, int64_t context,
                     const std::shared_ptr<HttpExchange>& exchange) {
  const std::string prompt = fields.required_text("prompt");
  EncodeOptions options;
  options.add_special = fields.flag("add_special_tokens", true);
  fields.finish();
  const std::vector<TokenId> ids = tokenizer.encode(prompt, options);
  send_json(exchange, {{"count", ids.size()}, {"max_model_len", context}, {"tokens", ids}});
}

void tokenize_with(const Tokenizer& tokenizer, int64_t context, const HttpRequest& request,
                   const std::shared_ptr<HttpExchange>& exchange) {
  const Json body = parse_body(request);
  Fields fields(body);
  fields.ignore({"model"});
  if (body.contains("prompt")) return tokenize_prompt(tokenizer, fields, context, exchange);
  const std::string content = fields.required_text("content");
  EncodeOptions options;
  options.add_special = fields.flag("add_special", false);
  options.parse_special = fields.flag("parse_special", true);
  const bool with_pieces = fields.flag("with_pieces", false);
  fields.finish();
  const std::vector<TokenId> ids = tokenizer.encode(content, options);
  if (!with_pieces) return send_json(exchange, {{"tokens", ids}});
  Json tokens = Json::array();
  for (const TokenId id : ids) {
    const std::string piece = tokenizer.token_bytes(id);
    const Json text(piece);
    // A piece that is no UTF-8 by itself is given as its bytes, as llama-server does.
    const bool broken = dump_json(text).find("\xEF\xBF\xBD") != std::string::npos &&
                        piece.find("\xEF\xBF\xBD") == std::string::npos;
    tokens.push_back(
        {{"id", id}, {"piece", broken ? Json(std::vector<uint8_t>(piece.begin(), piece.end())) : text}});
  }
  send_json(exchange, {{"tokens", std::move(tokens)}});
}

void detokenize_with(const Tokenizer& tokenizer, int64_t vocabulary, const HttpRequest& request,
                     const std::shared_ptr<HttpExchange>& exchange) {
  const Json body = parse_body(request);
  Fields fields(body);
  fields.ignore({"model"});
  const Json* tokens = fields.find("tokens");
  if (tokens == nullptr || !tokens->is_array()) throw_bad_field("tokens", "expected a list of token ids");
  fields.finish();
  std::string text;
  if (!tokens->empty()) text = tokenizer.decode(token_ids(*tokens, "tokens", vocabulary), false);
  send_json(exchange, {{"content", text}, {"prompt", text}});  // llama-server's name and vLLM's
}

}  // namespace

void tokenize(ServeContext& context, const HttpRequest& request,
              const std::shared_ptr<HttpExchange>& exchange) {
  tokenize_with(context.model->tokenizer(), context.engine.options().context, request, exchange);
}

void detokenize(ServeContext& context, const HttpRequest& request,
                const std::shared_ptr<HttpExchange>& exchange) {
  detokenize_with(context.model->tokenizer(), context.model->config().vocabulary_size, request, exchange);
}

void tokenizer_info(ServeContext& context, const HttpRequest&,
                    const std::shared_ptr<HttpExchange>& exchange) {
  const LanguageModel& model = *context.model;
  const Tokenizer& tokenizer = model.tokenizer();
  const auto token = [&](std::optional<TokenId> id) {
    return id ? Json(tokenizer.token_bytes(*id)) : Json();
  };
  const ChatTemplate* chat = model.chat_template();
  send_json(exchange, {{"tokenizer_class", tokenizer.kind()},
                       {"bos_token", token(tokenizer.bos())},
                       {"eos_token", token(tokenizer.eos())},
                       {"pad_token", token(tokenizer.pad())},
                       {"add_bos_token", tokenizer.adds_bos()},
                       {"model_max_length", context.engine.options().context},
                       {"chat_template", chat != nullptr ? Json(chat->source()) : Json()}});
}

void encoder_tokenize(EncoderContext& context, const HttpRequest& request,
                      const std::shared_ptr<HttpExchange>& exchange) {
  tokenize_with(context.model.tokenizer(), context.model.max_tokens(), request, exchange);
}

void encoder_detokenize(EncoderContext& context, const HttpRequest& request,
                        const std::shared_ptr<HttpExchange>& exchange) {
  detokenize_with(context.model.tokenizer(), context.model.config().vocabulary_size, request, exchange);
}

}  // namespace qiao::serve
