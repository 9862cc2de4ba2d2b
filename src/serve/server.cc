#include "serve/server.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <charconv>
#include <thread>

#include "serve/generation_fields.h"
#include "serve/json_error.h"
#include "serve/message_answer.h"
#include "serve/openapi.h"

namespace qiao::serve {

CommonContext::CommonContext(const std::string& name)
    : metrics(name), model_name(name), started(unix_seconds()) {}

std::string_view api_key_of(const HttpRequest& request) {
  const std::string_view key = request.header("authorization");
  if (key.size() > 7 && (key.starts_with("Bearer ") || key.starts_with("bearer "))) return key.substr(7);
  return request.header("x-api-key");
}

Json parse_body(const HttpRequest& request) {
  constexpr size_t kMostDepth = 64;
  try {
    // How long a body may be is the HTTP server's to say.
    Json body = parse_json(request.body, "body", {.max_bytes = SIZE_MAX, .max_depth = kMostDepth});
    if (!body.is_object())
      throw ApiError(400, fmt::format("body: expected a JSON object, got {}", body.type_name()));
    return body;
  } catch (const Error& e) {
    // NaN, broken UTF-8 or a number that no float64 holds stands in some field.
    const std::string field = field_of_json_error(request.body, kMostDepth);
    throw ApiError(400, field.empty() ? e.what() : fmt::format("{}: {}", field, e.what()), field,
                   "invalid_json");
  }
}

std::string check_model(const CommonContext& context, Fields& fields) {
  const std::optional<std::string> name = fields.text("model");
  if (!name || *name == context.model_name) return {};
  if (std::ranges::find(context.adapters, *name) != context.adapters.end()) return *name;
  std::string served = fmt::format("'{}' is", context.model_name);
  if (!context.adapters.empty())
    served = fmt::format("'{}' and '{}' are", context.model_name, fmt::join(context.adapters, "', '"));
  throw ApiError(404, fmt::format("model: '{}' is not served here; {}", name->substr(0, 200), served),
                 "model", "model_not_found");
}

void send_json(const std::shared_ptr<HttpExchange>& exchange, const Json& json) {
  exchange->send(200, "application/json", dump_json(json));
}

namespace {

[[noreturn]] void throw_too_long(const ServeContext& context, std::string_view count,
                                 const std::string& field) {
  throw ApiError(400,
                 fmt::format("{}: {} tokens do not fit the context of {}", field, count,
                             context.engine.options().context),
                 field, "context_length_exceeded");
}

}  // namespace

void check_fits(const ServeContext& context, size_t tokens, const std::string& field) {
  if (tokens > static_cast<size_t>(context.engine.options().context))
    throw_too_long(context, std::to_string(tokens), field);
}

void check_text_fits(const ServeContext& context, std::string_view text, const std::string& field) {
  const auto most = static_cast<size_t>(context.engine.options().context);
  const size_t looked_at = 12 * most;  // bytes; a token of any language has fewer on average
  if (text.size() <= 2 * looked_at) return;
  size_t end = looked_at;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
  const size_t tokens =
      context.model->tokenizer().encode(text.substr(0, end), {.parse_special = true}).size();
  // What follows may change the last tokens of the beginning, never half of them.
  if (tokens > 2 * most) throw_too_long(context, fmt::format("more than {}", tokens / 2), field);
}

std::vector<TokenId> prompt_ids(const ServeContext& context, const Json& entry, const std::string& field,
                                bool special) {
  if (entry.is_string()) {
    const Tokenizer& tokenizer = context.model->tokenizer();
    check_text_fits(context, entry.get_ref<const std::string&>(), field);
    std::vector<TokenId> ids =
        tokenizer.encode(entry.get_ref<const std::string&>(), {.add_special = special});
    if (ids.empty() && tokenizer.bos())
      ids.push_back(*tokenizer.bos());  // an empty text still starts somewhere
    if (ids.empty()) throw_bad_field(field, "is empty");
    check_fits(context, ids.size(), field);
    return ids;
  }
  if (entry.is_array()) check_fits(context, entry.size(), field);
  return token_ids(entry, field, context.model->config().vocabulary_size);
}

std::vector<TokenId> token_ids(const Json& entry, const std::string& field, int64_t vocabulary) {
  if (!entry.is_array())
    throw_bad_field(field, "expected a string or a list of token ids, got {}", entry.type_name());
  if (entry.empty()) throw_bad_field(field, "is empty");
  std::vector<TokenId> ids;
  ids.reserve(entry.size());
  for (const Json& id : entry) {
    if (!id.is_number_integer() ||
        (id.is_number_unsigned() && id.get<uint64_t>() >= static_cast<uint64_t>(vocabulary)) ||
        id.get<int64_t>() < 0 || id.get<int64_t>() >= vocabulary) {
      throw_bad_field(field, "{} is not a token id from 0 to {}", dump_json(id).substr(0, 40),
                      vocabulary - 1);
    }
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

std::vector<std::vector<TokenId>> prompt_list(const ServeContext& context, const Json& value,
                                              const std::string& field, size_t most) {
  const bool several = value.is_array() && !value.empty() && (value[0].is_string() || value[0].is_array());
  if (!several) return {prompt_ids(context, value, field, true)};
  if (value.size() > most)
    throw_bad_field(field, "has {} entries; at most {} are allowed", value.size(), most);
  std::vector<std::vector<TokenId>> list;
  for (size_t i = 0; i < value.size(); ++i) {
    list.push_back(prompt_ids(context, value[i], fmt::format("{}[{}]", field, i), true));
  }
  return list;
}

namespace {

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

// An entry of /v1/models; `root` and `parent` as vLLM has them: an adapter's path, and its base.
Json model_entry(const CommonContext& context, const std::string& name, const std::string& root, Json parent,
                 int64_t longest) {
  return {{"id", name},   {"object", "model"},           {"created", context.started}, {"owned_by", "qiao"},
          {"root", root}, {"parent", std::move(parent)}, {"max_model_len", longest}};
}

Json models_of(const ServeContext& context) {
  const int64_t longest = context.engine.options().context;
  const std::string& base = context.model_name;
  Json list = Json::array({model_entry(context, base, base, nullptr, longest)});
  for (const AdapterSource& adapter : context.model->adapters())
    list.push_back(model_entry(context, adapter.name, adapter.path.string(), base, longest));
  return list;
}

Json models_of(const EncoderContext& context) {
  const std::string& name = context.model_name;
  return Json::array({model_entry(context, name, name, nullptr, context.model.max_tokens())});
}

template <typename Context>
void list_models(Context& context, const HttpRequest&, const std::shared_ptr<HttpExchange>& exchange) {
  send_json(exchange, {{"object", "list"}, {"data", models_of(context)}});
}

// A name may hold what a path may not ("hf:org/repo"): clients write it as %2F.
std::string percent_decoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(&text[i + 1], &text[i + 1] + 2, value, 16).ptr == &text[i + 1] + 2) {
      out += static_cast<char>(value);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

template <typename Context>
void retrieve_model(Context& context, const HttpRequest& request,
                    const std::shared_ptr<HttpExchange>& exchange) {
  const std::string name =
      percent_decoded(std::string_view(request.path).substr(request.path.rfind('/') + 1));
  for (const Json& model : models_of(context)) {
    if (model["id"] == name) return send_json(exchange, model);
  }
  throw ApiError(
      404, fmt::format("model: '{}' is not served here; '{}' is", name.substr(0, 200), context.model_name),
      "model", "model_not_found");
}

template <typename Context>
void health(Context& context, const HttpRequest&, const std::shared_ptr<HttpExchange>& exchange) {
  if (context.draining) throw ApiError(503, "the server is shutting down");
  require_serving(context.engine.stats().condition);
  send_json(exchange, {{"status", "ok"}});
}

template <typename Context>
void metrics(Context& context, const HttpRequest&, const std::shared_ptr<HttpExchange>& exchange) {
  const HttpServer* http = context.http;
  exchange->send(200, "text/plain; version=0.0.4; charset=utf-8",
                 context.metrics.text(context.engine.stats(), http == nullptr ? 0 : http->connections()));
}

template <typename Context>
void openapi(Context& context, const HttpRequest&, const std::shared_ptr<HttpExchange>& exchange) {
  exchange->send(200, "application/json", context.openapi);
}

template <typename Context>
void page(Context&, const HttpRequest&, const std::shared_ptr<HttpExchange>& exchange) {
  exchange->send(
      200, "text/html; charset=utf-8", std::string(page_html()),
      {{"content-security-policy",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
       {"x-content-type-options", "nosniff"},
       {"referrer-policy", "no-referrer"}});
}

// In the words of the API that was called.
void send_error(const ApiError& error, const HttpRequest& request, HttpExchange& exchange,
                HttpHeaders headers = {}) {
  if (error.status() == 401) headers.emplace_back("www-authenticate", "Bearer");
  if (!request.path.starts_with("/v1/messages"))
    return exchange.send(error.status(), "application/json", dump_json(error.to_json()), headers);
  headers.emplace_back("request-id", request.id);
  const int status = message_error_status(error.status());
  exchange.send(status, "application/json", dump_json(message_error_json(status, error.what(), request.id)),
                headers);
}

template <typename Context>
struct Route {
  std::string_view method, path;
  void (*endpoint)(Context&, const HttpRequest&, const std::shared_ptr<HttpExchange>&);
  bool open;  // needs no key
};

constexpr Route<ServeContext> kRoutes[] = {
    {"POST", "/v1/chat/completions", chat_completions, false},
    {"POST", "/v1/completions", completions, false},
    {"POST", "/v1/responses", create_response, false},
    {"POST", "/v1/responses/input_tokens", count_response_tokens, false},
    {"GET", "/v1/responses/{response_id}", retrieve_response, false},
    {"DELETE", "/v1/responses/{response_id}", delete_response, false},
    {"GET", "/v1/responses/{response_id}/input_items", list_response_items, false},
    {"POST", "/v1/messages", create_message, false},
    {"POST", "/v1/messages/count_tokens", count_message_tokens, false},
    {"POST", "/v1/embeddings", embeddings, false},
    {"POST", "/v1/rerank", rerank, false},
    {"POST", "/rerank", rerank, false},
    {"GET", "/v1/models", list_models, false},
    {"GET", "/v1/models/{model}", retrieve_model, false},
    {"POST", "/tokenize", tokenize, false},
    {"POST", "/detokenize", detokenize, false},
    {"GET", "/tokenizer_info", tokenizer_info, false},
    {"GET", "/openapi.json", openapi, true},
    {"GET", "/health", health, true},
    {"GET", "/metrics", metrics, false},
    {"GET", "/", page, true},
};

constexpr Route<EncoderContext> kEncoderRoutes[] = {
    {"GET", "/openapi.json", openapi, true},
    {"POST", "/v1/embeddings", encoder_embeddings, false},
    {"POST", "/v1/rerank", encoder_rerank, false},
    {"POST", "/rerank", encoder_rerank, false},
    {"GET", "/v1/models", list_models, false},
    {"GET", "/v1/models/{model}", retrieve_model, false},
    {"POST", "/tokenize", encoder_tokenize, false},
    {"POST", "/detokenize", encoder_detokenize, false},
    {"GET", "/health", health, true},
    {"GET", "/metrics", metrics, false},
    {"GET", "/", page, true},
};

// "{id}" in the pattern stands for one part of the path, whatever it is.
bool path_matches(std::string_view pattern, std::string_view path) {
  while (true) {
    const std::string_view wanted = pattern.substr(0, pattern.find('/'));
    const std::string_view part = path.substr(0, path.find('/'));
    if (wanted.starts_with('{') ? part.empty() : wanted != part) return false;
    pattern.remove_prefix(wanted.size());
    path.remove_prefix(part.size());
    if (pattern.empty() || path.empty()) return pattern.empty() && path.empty();
    pattern.remove_prefix(1);
    path.remove_prefix(1);
  }
}

// The path's route for this method, or null; `methods` is given what the path takes, as an Allow header says
// it.
template <typename Context, size_t kCount>
const Route<Context>* find_route(const Route<Context> (&routes)[kCount], const HttpRequest& request,
                                 std::string& methods) {
  const Route<Context>* found = nullptr;
  for (const Route<Context>& route : routes) {
    if (!path_matches(route.path, request.path)) continue;
    methods += fmt::format("{}, {}", route.method, route.method == "GET" ? "HEAD, " : "");
    if (route.method == request.method || (request.method == "HEAD" && route.method == "GET")) found = &route;
  }
  return found;
}

// JSON, what `curl -d` says by itself, or nothing; ApiError 415 for what cannot be JSON or is compressed.
void check_content_type(const HttpRequest& request) {
  std::string type(request.header("content-type"));
  type.resize(std::min(type.find(';'), type.size()));
  while (type.ends_with(' ')) type.pop_back();
  std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return std::tolower(c); });
  const bool json = type.empty() || type == "application/json" || type.ends_with("+json") ||
                    type == "text/json" || type == "text/plain" || type == "application/octet-stream" ||
                    type == "application/x-www-form-urlencoded";
  if (!json)
    throw ApiError(415,
                   fmt::format("content-type: '{}' is not taken; application/json is", type.substr(0, 100)),
                   "content-type");
  const std::string_view encoding = request.header("content-encoding");
  if (!encoding.empty() && encoding != "identity")
    throw ApiError(
        415, fmt::format("content-encoding: '{}' is not taken; send the body plain", encoding.substr(0, 100)),
        "content-encoding");
}

// Adds to every answer of one request: CORS headers, when to come back, and its count.
class CountedExchange final : public HttpExchange {
 public:
  CountedExchange(std::shared_ptr<HttpExchange> inner, CommonContext& context, std::string path,
                  HttpHeaders extra)
      : inner_(std::move(inner)), context_(context), path_(std::move(path)), extra_(std::move(extra)) {}
  void send(int status, std::string_view type, std::string body, const HttpHeaders& headers) override {
    context_.metrics.count_request(path_, status);
    HttpHeaders all = joined(headers);
    // A place in the queue is free as soon as any request has ended; clients back off further by themselves.
    // 529: a 503 in Anthropic's words.
    if (status == 429 || status == 503 || status == 529) all.emplace_back("retry-after", "1");
    inner_->send(status, type, std::move(body), all);
  }
  void begin(int status, std::string_view type, const HttpHeaders& headers) override {
    context_.metrics.count_request(path_, status);
    inner_->begin(status, type, joined(headers));
  }
  void write(std::string_view bytes) override { inner_->write(bytes); }
  void end() override { inner_->end(); }
  bool closed() const override { return inner_->closed(); }
  void on_close(std::function<void()> callback) override { inner_->on_close(std::move(callback)); }

 private:
  HttpHeaders joined(const HttpHeaders& headers) const {
    HttpHeaders all = headers;
    all.insert(all.end(), extra_.begin(), extra_.end());
    return all;
  }
  std::shared_ptr<HttpExchange> inner_;
  CommonContext& context_;
  std::string path_;
  HttpHeaders extra_;
};

}  // namespace

std::vector<std::pair<std::string_view, std::string_view>> served_routes(bool encoder) {
  std::vector<std::pair<std::string_view, std::string_view>> list;
  const auto add = [&](const auto& routes) {
    for (const auto& route : routes) list.emplace_back(route.method, route.path);
  };
  encoder ? add(kEncoderRoutes) : add(kRoutes);
  return list;
}

struct Server::State {
  std::unique_ptr<ServeContext> decoder;  // one of these two
  std::unique_ptr<EncoderContext> encoder;
  CommonContext& context;
  ServerOptions options;
  std::unique_ptr<HttpServer> http;  // last: it is gone before what its handlers use

  State(std::shared_ptr<LanguageModel> model, Engine& engine, const ServerOptions& o, const std::string& name)
      : decoder(std::make_unique<ServeContext>(name, std::move(model), engine)),
        context(*decoder),
        options(o) {}
  State(EncoderEngine& engine, const ServerOptions& o, const std::string& name)
      : encoder(std::make_unique<EncoderContext>(name, engine)), context(*encoder), options(o) {}

  void handle(const HttpRequest& request, const std::shared_ptr<HttpExchange>& exchange);
  void route(const HttpRequest& request, const std::shared_ptr<HttpExchange>& exchange);
  bool allowed_origin(std::string_view origin, std::string_view host) const;
};

bool Server::State::allowed_origin(std::string_view origin, std::string_view host) const {
  const bool same = origin == fmt::format("http://{}", host) || origin == fmt::format("https://{}", host);
  return same || std::any_of(options.cors_origins.begin(), options.cors_origins.end(),
                             [&](const std::string& allowed) { return allowed == "*" || allowed == origin; });
}

void Server::State::route(const HttpRequest& request, const std::shared_ptr<HttpExchange>& exchange) {
  std::string methods, encoder_methods;
  const Route<ServeContext>* known = find_route(kRoutes, request, methods);
  const Route<EncoderContext>* encoders = nullptr;
  if (encoder != nullptr) encoders = find_route(kEncoderRoutes, request, encoder_methods);
  if (!encoder_methods.empty()) methods = encoder_methods;
  const bool open =
      encoder != nullptr ? encoders != nullptr && encoders->open : known != nullptr && known->open;
  if (!open) {  // who has no key does not learn which paths there are
    if (!options.api_keys.empty()) {
      const std::string_view key = api_key_of(request);
      bool known = false;
      for (const std::string& allowed : options.api_keys) known |= equal_in_constant_time(key, allowed);
      if (!known) {
        throw ApiError(401,
                       key.empty() ? "no API key; send one as \"Authorization: Bearer KEY\""
                                   : "the API key is not valid here",
                       "", "invalid_api_key");
      }
    }
  }
  if (request.method == "POST" && (known != nullptr || encoders != nullptr)) check_content_type(request);
  if (encoder != nullptr && encoders != nullptr) return encoders->endpoint(*encoder, request, exchange);
  if (encoder != nullptr && known != nullptr) {
    throw ApiError(400,
                   fmt::format("'{}' is an embedding model: it answers /v1/embeddings (a cross-encoder "
                               "/v1/rerank); {} needs a language model",
                               context.model_name, request.path),
                   "model", "model_not_supported");
  }
  if (known == nullptr && !methods.empty()) {
    methods += "OPTIONS";
    if (request.method == "OPTIONS") return exchange->send(204, "", "", {{"allow", methods}});
    const ApiError error(405, fmt::format("{} is not allowed on {}; {} are", request.method.substr(0, 40),
                                          request.path, methods));
    return send_error(error, request, *exchange, {{"allow", methods}});
  }
  if (known == nullptr) throw ApiError(404, fmt::format("no such path: {}", request.path.substr(0, 200)));
  known->endpoint(*decoder, request, exchange);
}

void Server::State::handle(const HttpRequest& request, const std::shared_ptr<HttpExchange>& plain) {
  const std::string_view origin = request.header("origin");
  HttpHeaders extra;
  const bool allowed = origin.empty() || allowed_origin(origin, request.header("host"));
  if (!origin.empty() && allowed && !options.cors_origins.empty()) {
    extra = {{"access-control-allow-origin", std::string(origin)},
             {"access-control-expose-headers", "x-request-id"},
             {"vary", "origin"}};
  }
  const auto* known = std::find_if(std::begin(kRoutes), std::end(kRoutes),
                                   [&](const auto& route) { return path_matches(route.path, request.path); });
  const std::string counted(known != std::end(kRoutes) ? known->path : "other");
  const auto exchange = std::make_shared<CountedExchange>(plain, context, counted, extra);
  try {
    // A page of another origin may not spend this machine's compute: even answers it cannot read cost.
    if (!allowed)
      throw ApiError(403, fmt::format("origin {} is not allowed; see --cors-origin", origin.substr(0, 200)));
    if (request.method == "OPTIONS" && !origin.empty()) {
      exchange->send(
          204, "text/plain", "",
          {{"access-control-allow-methods", "GET, POST, DELETE, OPTIONS"},
           {"access-control-allow-headers",
            "authorization, content-type, x-api-key, x-request-id, anthropic-version, anthropic-beta, "
            "anthropic-dangerous-direct-browser-access"},
           {"access-control-max-age", "600"}});
      return;
    }
    route(request, exchange);
  } catch (const ApiError& e) {
    send_error(e, request, *exchange);
  } catch (const Error& e) {
    send_error(to_api_error(e), request, *exchange);
  }
}

Server::Server(std::shared_ptr<LanguageModel> model, Engine& engine, const ServerOptions& options) {
  const std::string name = options.model_name.empty() ? model->name() : options.model_name;
  if (std::ranges::find(model->adapters(), name, &AdapterSource::name) != model->adapters().end()) {
    throw_error(ErrorKind::kInvalidInput, "adapter name '{}' is the model's own; give one of them another",
                name);
  }
  state_ = std::make_unique<State>(std::move(model), engine, options, name);
  state_->decoder->responses.set_max_bytes(options.response_store_bytes);
  start(options);
}

Server::Server(EncoderEngine& engine, const ServerOptions& options) {
  const std::string name = options.model_name.empty() ? engine.model().name() : options.model_name;
  state_ = std::make_unique<State>(engine, options, name);
  start(options);
}

void Server::start(const ServerOptions& options) {
  HttpServerOptions http = options.http;
  http.error_body = [](int status, std::string_view message) {
    // Of a request that nobody has read: what both OpenAI's and Anthropic's clients understand.
    Json error = error_json(status, message);
    error["type"] = "error";
    return dump_json(error);
  };
  ApiFacts facts{.encoder = state_->encoder != nullptr,
                 .keys = !options.api_keys.empty(),
                 .models = {state_->context.model_name}};
  if (facts.encoder) {
    facts.vocabulary = state_->encoder->model.config().vocabulary_size;
    facts.dimensions = state_->encoder->model.pooling().dimensions;
  } else {
    facts.models.insert(facts.models.end(), state_->decoder->adapters.begin(),
                        state_->decoder->adapters.end());
    facts.vocabulary = state_->decoder->model->config().vocabulary_size;
    facts.dimensions = state_->decoder->model->config().hidden_size;
  }
  state_->context.openapi = openapi_text(facts);
  state_->http = std::make_unique<HttpServer>(
      http,
      [state = state_.get()](const HttpRequest& request, const std::shared_ptr<HttpExchange>& exchange) {
        state->handle(request, exchange);
      });
  state_->context.http = state_->http.get();
}

Server::~Server() = default;

uint16_t Server::port() const { return state_->http->port(); }

int Server::listening_fd() const { return state_->http->listening_fd(); }

void Server::drain(int seconds, HttpServer::Idle idle) {
  state_->context.draining = true;
  state_->http->stop(seconds, idle);
}

}  // namespace qiao::serve
