// Request bodies, through the endpoints themselves: the first byte picks one, the rest is the body. What is
// asked for is cancelled at once, so that the parser is fuzzed and not the model.
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "base/error.h"
#include "serve/api_error.h"
#include "serve/server.h"

namespace qiao::serve {
namespace {

class DroppedExchange final : public HttpExchange {
 public:
  void send(int, std::string_view, std::string, const HttpHeaders&) override {}
  void begin(int, std::string_view, const HttpHeaders&) override {}
  void write(std::string_view) override {}
  void end() override {}
  bool closed() const override { return true; }
  void on_close(std::function<void()> callback) override { callback(); }
};

struct Fixture {
  std::shared_ptr<LanguageModel> model = [] {
    LanguageModelOptions options;
    options.threads = 1;
    return LanguageModel::load(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "chat", options);
  }();
  Engine engine{model, {.context = 256, .slots = 4, .max_queued = 4096}};
  ServeContext context{"chat", model, engine};
  // Encoders: of embeddings, of pairs.
  static std::shared_ptr<EmbeddingModel> encoder(const char* name) {
    LanguageModelOptions options;
    options.threads = 1;
    return EmbeddingModel::load(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "encoders" / name,
                                options);
  }
  EncoderEngine embedder{encoder("bert")}, reranker{encoder("cross-bert")};
  EncoderContext embedding_context{"bert", embedder}, rerank_context{"cross-bert", reranker};
};

}  // namespace

void fuzz(const uint8_t* data, size_t size) {
  static Fixture fixture;
  if (size == 0) return;
  constexpr Endpoint kEndpoints[] = {
      chat_completions,      completions,    embeddings,          tokenize, detokenize, create_response,
      count_response_tokens, create_message, count_message_tokens};
  constexpr size_t kCount = std::size(kEndpoints);
  HttpRequest request;
  request.method = "POST";
  request.body.assign(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto exchange = std::make_shared<DroppedExchange>();
  try {
    switch (const size_t pick = data[0] % (kCount + 2)) {
      case kCount:
        return encoder_embeddings(fixture.embedding_context, request, exchange);
      case kCount + 1:
        return encoder_rerank(fixture.rerank_context, request, exchange);
      default:
        return kEndpoints[pick](fixture.context, request, exchange);
    }
  } catch (const ApiError&) {  // a refusal is an answer
  } catch (const Error&) {
  }
}

}  // namespace qiao::serve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  qiao::serve::fuzz(data, size);
  return 0;
}
