// The fields that chat and text completions share, and the choices of one answer as they come out of the
// engine.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "serve/fields.h"
#include "serve/http_server.h"

namespace qiao::serve {

struct GenerationFields {
  SamplingOptions sampling;
  std::vector<std::string> stop;
  int64_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool ignore_eos = false;
};

// Reads temperature, top_p, top_k, min_p, penalties, logit_bias, seed, stop, n, stream, stream_options,
// ignore_eos, and skips the fields of the API that change nothing here.
GenerationFields read_generation_fields(Fields& fields, const LanguageModel& model);

inline constexpr int64_t kMaxTokensLimit = int64_t{1} << 30;
inline constexpr int64_t kMaxChoices = 128;

// "stop", "length"; a cancelled or failed choice has none.
Json finish_reason_json(FinishReason reason);

// {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}, and of a chat
// "completion_tokens_details".
struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  std::optional<int64_t> reasoning_tokens;
  Json to_json() const;
};

// One server-sent event: "data: JSON\n\n".
std::string sse(const Json& json);
// "event: NAME\ndata: JSON\n\n".
std::string sse_event(std::string_view name, const Json& json);
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
HttpHeaders sse_headers();

// Ties the requests of one answer to its exchange: when the peer hangs up, they are cancelled.
class CancelGroup {
 public:
  void add(std::shared_ptr<Generation> generation);
  void cancel();

 private:
  std::mutex mutex_;
  bool cancelled_ = false;
  std::vector<std::shared_ptr<Generation>> generations_;
};

// "chatcmpl-" and 24 random characters.
std::string random_id(std::string_view prefix);
int64_t unix_seconds();

}  // namespace qiao::serve
