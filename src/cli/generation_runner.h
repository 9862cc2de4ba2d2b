// Runs one request on an engine and waits for it, Ctrl-C included.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "infer/engine.h"

namespace qiao::cli {

// While one lives, Ctrl-C sets a flag instead of ending the process. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  static bool interrupted();
  static void reset();
};

struct GenerationResult {
  std::string text;
  std::vector<TokenId> tokens;
  std::vector<TokenLogprobs> logprobs;  // as tokens, where asked for
  GenerationEvent last;
};

// on_text is called on this thread with each piece of text as it is decided. Ctrl-C (under an InterruptGuard)
// cancels: the result then has finish kCancelled. Throws Error(kUnsupported) where the engine reports an
// error.
GenerationResult run_generation(Engine& engine, GenerationRequest request,
                                const std::function<void(std::string_view)>& on_text);

std::string_view finish_name(FinishReason reason);  // "stop", "length", "cancelled", "error"
// {"text", "tokens", "finish_reason", "usage", "timings"}.
Json to_json(const GenerationResult& result, const Tokenizer& tokenizer);
// "52 tokens, 118.3 tokens/s; prompt 31 tokens (12 cached), first token after 0.09 s".
std::string statistics(const GenerationEvent& last);

}  // namespace qiao::cli
