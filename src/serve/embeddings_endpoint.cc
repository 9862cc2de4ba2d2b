// /v1/embeddings: the mean of the last hidden states, scaled to length 1.
#include <mutex>
#include <optional>

#include "models/pooling.h"
#include "serve/api_error.h"
#include "serve/embedding_fields.h"
#include "serve/generation_fields.h"
#include "serve/server.h"

namespace qiao::serve {
namespace {

// The answer to one request, filled as its inputs finish.
struct EmbeddingsAnswer {
  std::shared_ptr<HttpExchange> exchange;
  std::string model_name;
  bool base64 = false;
  std::mutex mutex;
  size_t left = 0;
  std::vector<std::vector<float>> vectors;
  int64_t prompt_tokens = 0;
  std::optional<ApiError> error;
};

void send_embeddings(EmbeddingsAnswer& answer) {
  if (answer.error) {
    answer.exchange->send(answer.error->status(), "application/json", dump_json(answer.error->to_json()));
    return;
  }
  send_json(answer.exchange,
            embeddings_json(answer.vectors, answer.model_name, answer.prompt_tokens, answer.base64));
}

}  // namespace

void embeddings(ServeContext& context, const HttpRequest& request,
                const std::shared_ptr<HttpExchange>& exchange) {
  const Json body = parse_body(request);
  Fields fields(body);
  const std::string adapter = check_model(context, fields);
  const EmbeddingFields wanted = read_embedding_fields(fields, context.model->config().hidden_size);
  fields.finish();
  std::vector<std::vector<TokenId>> prompts = prompt_list(context, *wanted.input, "input", kMaxInputs);

  const auto answer = std::make_shared<EmbeddingsAnswer>();
  answer->exchange = exchange;
  answer->model_name = context.served_name(adapter);
  answer->base64 = wanted.base64;
  answer->left = prompts.size();
  answer->vectors.resize(prompts.size());
  const auto group = std::make_shared<CancelGroup>();
  try {
    for (size_t i = 0; i < prompts.size(); ++i) {
      GenerationRequest generation;
      generation.tenant = api_key_of(request);
      generation.adapter = adapter;
      generation.prompt = std::move(prompts[i]);
      generation.embedding = true;
      group->add(context.engine.submit(std::move(generation), [answer, i, dimensions = wanted.dimensions,
                                                               &context](const GenerationEvent& event) {
        if (event.finish == FinishReason::kNone) return;
        context.metrics.count_generation(event);
        const std::lock_guard lock(answer->mutex);
        if (event.finish != FinishReason::kStop) {
          answer->error =
              to_api_error(Error(event.error_kind, event.error.empty() ? "cancelled" : event.error));
        } else {
          answer->vectors[i] = event.embedding;
          shorten(answer->vectors[i], dimensions);
          answer->prompt_tokens += event.prompt_tokens;
        }
        if (--answer->left == 0) send_embeddings(*answer);
      }));
    }
  } catch (...) {
    group->cancel();
    throw;
  }
  exchange->on_close([group] { group->cancel(); });
}

}  // namespace qiao::serve
