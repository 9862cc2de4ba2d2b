// What a server with an encoder answers: /v1/embeddings, and /v1/rerank for cross-encoders.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "models/pooling.h"
#include "serve/api_error.h"
#include "serve/embedding_fields.h"
#include "serve/generation_fields.h"
#include "serve/server.h"

namespace qiao::serve {
namespace {

constexpr size_t kMaxDocuments = 2048;

// "truncate" (true: to what the model takes) and vLLM's "truncate_prompt_tokens" (a number; -1: as truncate).
// 0: over-long inputs are refused.
int64_t read_truncation(Fields& fields, int64_t most, bool fallback) {
  const bool truncate = fields.flag("truncate", fallback);
  const std::optional<int64_t> tokens = fields.integer("truncate_prompt_tokens", -1, INT32_MAX);
  if (!tokens || *tokens == -1) return tokens || truncate ? most : 0;
  if (*tokens < 1 || *tokens > most)
    throw_bad_field("truncate_prompt_tokens", "{} is out of range; allowed: -1, 1 to {}", *tokens, most);
  return *tokens;
}

void refuse_long(const std::string& field, size_t tokens, int64_t most) {
  throw_bad_field(field, "has {} tokens, the model takes {}; \"truncate\": true cuts it", tokens, most);
}

EncoderInput encoder_input(const EncoderContext& context, const Json& entry, const std::string& field,
                           int64_t truncate_to) {
  const EmbeddingModel& model = context.model;
  EncoderInput input;
  if (entry.is_string()) {
    input = model.encode(entry.get_ref<const std::string&>());
    if (input.tokens.empty()) throw_bad_field(field, "is empty");
  } else {
    input.tokens = token_ids(entry, field, model.config().vocabulary_size);
  }
  if (truncate_to > 0) model.truncate(input, truncate_to);
  if (static_cast<int64_t>(input.tokens.size()) > model.max_tokens())
    refuse_long(field, input.tokens.size(), model.max_tokens());
  return input;
}

std::vector<EncoderInput> encoder_inputs(const EncoderContext& context, const Json& value,
                                         int64_t truncate_to) {
  const bool several = value.is_array() && !value.empty() && (value[0].is_string() || value[0].is_array());
  if (!several) return {encoder_input(context, value, "input", truncate_to)};
  if (value.size() > kMaxInputs)
    throw_bad_field("input", "has {} entries; at most {} are allowed", value.size(), kMaxInputs);
  std::vector<EncoderInput> inputs;
  for (size_t i = 0; i < value.size(); ++i)
    inputs.push_back(encoder_input(context, value[i], fmt::format("input[{}]", i), truncate_to));
  return inputs;
}

// Submits, and answers with what `to_json` makes of the vectors.
void answer_with(EncoderContext& context, const std::shared_ptr<HttpExchange>& exchange,
                 std::vector<EncoderInput> inputs, std::function<Json(const EncoderOutcome&)> to_json) {
  const std::shared_ptr<Generation> handle = context.engine.submit(
      std::move(inputs), [exchange, to_json = std::move(to_json)](const EncoderOutcome& outcome) {
        if (outcome.finish == FinishReason::kStop) return send_json(exchange, to_json(outcome));
        const ApiError error =
            to_api_error(Error(outcome.error_kind, outcome.error.empty() ? "cancelled" : outcome.error));
        exchange->send(error.status(), "application/json", dump_json(error.to_json()));
      });
  exchange->on_close([handle] { handle->cancel(); });
}

// A document: a text, or an object with one.
std::string document_text(const Json& entry, const std::string& field) {
  if (entry.is_string()) return entry.get<std::string>();
  if (entry.is_object() && entry.contains("text") && entry["text"].is_string())
    return entry["text"].get<std::string>();
  throw_bad_field(field, "expected a string or an object with \"text\", got {}", entry.type_name());
}

struct RerankRequest {
  std::vector<std::string> documents;
  size_t top_n = 0;
  bool return_documents = false, raw_scores = false;
};

// Jina's and Cohere's form of an answer.
Json rerank_json(const RerankRequest& request, const std::string& model_name, const EncoderOutcome& outcome) {
  std::vector<double> scores;
  for (const std::vector<float>& vector : outcome.vectors) {
    const double score = vector.front();
    scores.push_back(request.raw_scores ? score : 1.0 / (1.0 + std::exp(-score)));
  }
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  // Of equal scores (the sigmoid's ends are flat) the larger logit, then the earlier document.
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return outcome.vectors[a][0] > outcome.vectors[b][0]; });
  order.resize(std::min(order.size(), request.top_n));
  Json results = Json::array();
  for (const size_t i : order) {
    Json result = {{"index", i}, {"relevance_score", scores[i]}};
    if (request.return_documents) result["document"] = {{"text", request.documents[i]}};
    results.push_back(std::move(result));
  }
  return {{"object", "list"},
          {"model", model_name},
          {"results", std::move(results)},
          {"usage", {{"prompt_tokens", outcome.prompt_tokens}, {"total_tokens", outcome.prompt_tokens}}}};
}

}  // namespace

void encoder_embeddings(EncoderContext& context, const HttpRequest& request,
                        const std::shared_ptr<HttpExchange>& exchange) {
  const Json body = parse_body(request);
  Fields fields(body);
  check_model(context, fields);
  const PoolingHead& pooling = context.model.pooling();
  if (pooling.scores) {
    throw ApiError(400,
                   fmt::format("'{}' is a classifier (cross-encoder): it answers /v1/rerank; embeddings need "
                               "an embedding model",
                               context.model_name),
                   "model", "model_not_supported");
  }
  const EmbeddingFields wanted = read_embedding_fields(fields, pooling.dimensions);
  const int64_t truncate_to = read_truncation(fields, context.model.max_tokens(), false);
  fields.finish();
  answer_with(context, exchange, encoder_inputs(context, *wanted.input, truncate_to),
              [wanted, name = context.model_name](const EncoderOutcome& outcome) {
                if (!wanted.cut)
                  return embeddings_json(outcome.vectors, name, outcome.prompt_tokens, wanted.base64);
                std::vector<std::vector<float>> vectors = outcome.vectors;
                for (std::vector<float>& vector : vectors) shorten(vector, wanted.dimensions);
                return embeddings_json(vectors, name, outcome.prompt_tokens, wanted.base64);
              });
}

void encoder_rerank(EncoderContext& context, const HttpRequest& request,
                    const std::shared_ptr<HttpExchange>& exchange) {
  const Json body = parse_body(request);
  Fields fields(body);
  check_model(context, fields);
  const EmbeddingModel& model = context.model;
  if (!model.is_cross_encoder()) {
    const std::string what = model.pooling().scores
                                 ? fmt::format("a classifier of {} labels", model.pooling().dimensions)
                                 : "an embedding model";
    throw ApiError(400,
                   fmt::format("'{}' is {}; reranking needs a cross-encoder (a sequence classification model "
                               "with one label)",
                               context.model_name, what),
                   "model", "model_not_supported");
  }
  RerankRequest rerank;
  const std::string query = fields.required_text("query");
  const Json* documents = fields.find("documents");
  if (documents == nullptr || !documents->is_array() || documents->empty())
    throw_bad_field("documents", "expected a list of one text or more");
  if (documents->size() > kMaxDocuments) {
    throw_bad_field("documents", "has {} entries; at most {} are allowed", documents->size(), kMaxDocuments);
  }
  rerank.top_n = static_cast<size_t>(fields.integer("top_n", 1, INT32_MAX).value_or(INT32_MAX));
  rerank.return_documents = fields.flag("return_documents", false);
  rerank.raw_scores = fields.flag("raw_scores", false);
  const int64_t truncate_to = read_truncation(fields, model.max_tokens(), true);
  fields.ignore({"user"});
  fields.finish();
  // Documents are cut, as rerankers do, where the request does not forbid it.
  const int64_t most = truncate_to > 0 ? truncate_to : INT32_MAX;
  constexpr int64_t kLeastTokens = 8;  // room for special tokens and something of both texts
  if (most < kLeastTokens) throw_bad_field("truncate_prompt_tokens", "{} is too few for a pair", most);
  std::vector<TokenId> query_tokens = model.encode_plain(query);
  // The query is in every sequence: one that will be cut anyway is not copied in whole.
  const auto most_of_query = static_cast<size_t>(8 * model.max_tokens());
  if (query_tokens.size() > most_of_query) {
    if (truncate_to == 0) refuse_long("query", query_tokens.size(), model.max_tokens());
    query_tokens.resize(most_of_query);
  }
  std::vector<EncoderInput> inputs;
  for (size_t i = 0; i < documents->size(); ++i) {
    const std::string field = fmt::format("documents[{}]", i);
    rerank.documents.push_back(document_text((*documents)[i], field));
    inputs.push_back(model.encode_pair(query_tokens, model.encode_plain(rerank.documents.back()), most));
    if (static_cast<int64_t>(inputs.back().tokens.size()) > model.max_tokens())
      refuse_long(field, inputs.back().tokens.size(), model.max_tokens());
  }
  answer_with(context, exchange, std::move(inputs),
              [rerank = std::move(rerank), name = context.model_name](const EncoderOutcome& outcome) {
                return rerank_json(rerank, name, outcome);
              });
}

void rerank(ServeContext& context, const HttpRequest&, const std::shared_ptr<HttpExchange>&) {
  throw ApiError(400,
                 fmt::format("'{}' is a language model; reranking needs a cross-encoder (a sequence "
                             "classification model with one label)",
                             context.model_name),
                 "model", "model_not_supported");
}

}  // namespace qiao::serve
