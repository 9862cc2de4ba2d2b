// The OpenAI-compatible server: routes, keys, and what an endpoint needs.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "chat/chat_format.h"
#include "infer/encoder_engine.h"
#include "infer/engine.h"
#include "serve/fields.h"
#include "serve/http_server.h"
#include "serve/metrics.h"
#include "serve/response_store.h"

namespace qiao::serve {

struct ServerOptions {
  HttpServerOptions http;
  std::string model_name;                          // what /v1/models shows; empty: the model's own
  std::vector<std::string> api_keys;               // none: open
  size_t response_store_bytes = size_t{64} << 20;  // kept answers of /v1/responses; 0: none
  std::vector<std::string> cors_origins;  // exact origins, or "*"; none: pages of other origins are refused
};

// What endpoints share, whatever the model. Lives as long as the server.
struct CommonContext {
  explicit CommonContext(const std::string& name);
  Metrics metrics;
  std::string model_name;
  std::vector<std::string> adapters;  // LoRA adapters by name: each is a model to clients
  // What answers call the model that an adapter (empty: none) makes of the base.
  const std::string& served_name(const std::string& adapter) const {
    return adapter.empty() ? model_name : adapter;
  }
  int64_t started = 0;  // seconds since 1970
  std::string openapi;  // the text of /openapi.json
  std::atomic<bool> draining{false};
  std::atomic<const HttpServer*> http{nullptr};  // once it is there
};

// Of a server with a language model.
struct ServeContext : CommonContext {
  ServeContext(const std::string& name, std::shared_ptr<LanguageModel> language_model, Engine& its_engine)
      : CommonContext(name),
        model(std::move(language_model)),
        engine(its_engine),
        chat_format(model->chat_template() == nullptr
                        ? chat::ChatFormat()
                        : chat::detect_chat_format(model->chat_template()->source())) {
    for (const AdapterSource& adapter : model->adapters()) adapters.push_back(adapter.name);
  }
  std::shared_ptr<LanguageModel> model;
  Engine& engine;
  chat::ChatFormat chat_format;      // how the model writes calls of tools and thoughts
  constrain::GrammarCache grammars;  // what answers had to look like, compiled
  ResponseStore responses;
};

// Of a server with an encoder: embeddings, or the scores of a cross-encoder.
struct EncoderContext : CommonContext {
  EncoderContext(const std::string& name, EncoderEngine& its_engine)
      : CommonContext(name), model(its_engine.model()), engine(its_engine) {}
  const EmbeddingModel& model;
  EncoderEngine& engine;
};

using Endpoint = void (*)(ServeContext& context, const HttpRequest& request,
                          const std::shared_ptr<HttpExchange>& exchange);

void chat_completions(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void completions(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void create_response(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void count_response_tokens(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void retrieve_response(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void delete_response(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void list_response_items(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void create_message(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void count_message_tokens(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void rerank(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void embeddings(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void tokenize(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void detokenize(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void tokenizer_info(ServeContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);

using EncoderEndpoint = void (*)(EncoderContext& context, const HttpRequest& request,
                                 const std::shared_ptr<HttpExchange>& exchange);

void encoder_embeddings(EncoderContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void encoder_rerank(EncoderContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void encoder_tokenize(EncoderContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
void encoder_detokenize(EncoderContext&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);

// The key that a client sent; empty where it sent none. Also the tenant of its requests: other keys share no
// cached prompts with it.
std::string_view api_key_of(const HttpRequest& request);
// The body as a JSON object; ApiError 400 otherwise.
Json parse_body(const HttpRequest& request);
// The adapter that the field "model" names; empty for the model itself, or where there is no such field.
// ApiError 404 where the request names a model that is not served.
std::string check_model(const CommonContext& context, Fields& fields);
void send_json(const std::shared_ptr<HttpExchange>& exchange, const Json& json);
// ApiError 400 where a prompt of so many tokens has no place in the context.
void check_fits(const ServeContext& context, size_t tokens, const std::string& field);
// The same of a text that is much too long, by its beginning: a huge one is not tokenized to be refused.
void check_text_fits(const ServeContext& context, std::string_view text, const std::string& field);
// A prompt field's entry: a text or a list of token ids.
std::vector<TokenId> prompt_ids(const ServeContext& context, const Json& entry, const std::string& field,
                                bool special);
// A list of token ids, each in [0, vocabulary).
std::vector<TokenId> token_ids(const Json& entry, const std::string& field, int64_t vocabulary);
// The prompts of "prompt" or "input": a text, texts, ids or lists of ids. At most `most` of them.
std::vector<std::vector<TokenId>> prompt_list(const ServeContext& context, const Json& value,
                                              const std::string& field, size_t most);

// The chat page.
std::string_view page_html();

class Server {
 public:
  Server(std::shared_ptr<LanguageModel> model, Engine& engine, const ServerOptions& options);
  Server(EncoderEngine& engine, const ServerOptions& options);
  ~Server();
  uint16_t port() const;
  int listening_fd() const;  // for a successor
  // Accepts no more connections (/health on those open says 503), lets what runs finish for at most
  // `seconds`.
  void drain(int seconds, HttpServer::Idle idle = HttpServer::Idle::kLeave);

 private:
  void start(const ServerOptions& options);
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qiao::serve
