// Runs requests on a model: packs each step with one token of every running request, then with prompt tokens
// up to a budget; keeps keys and values in pages that requests of one tenant share (scheduler.h). One thread
// of its own calls the decoder; submit and cancel are safe from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "constrain/constraint.h"
#include "infer/device_restarts.h"
#include "infer/language_model.h"
#include "infer/sampling.h"

namespace qiao {

enum class FinishReason { kNone, kStop, kLength, kCancelled, kError };

struct TokenLogprobs {
  // Of the token itself, natural logarithm, before any sampling option (but the temperature, where the
  // request asks for it).
  float logprob = 0.0f;
  std::vector<std::pair<TokenId, float>> top;  // the most likely ones, descending
};

struct GenerationRequest {
  std::vector<TokenId> prompt;  // 1 or more, fewer than the context
  SamplingOptions sampling;
  int64_t max_tokens = -1;  // -1: until the context is full; 0: only the prompt is computed
  std::vector<std::string> stop;
  bool ignore_eos = false;
  int32_t choice = 0;  // index among the choices of one API request: part of the random stream
  bool logprobs = false;
  int32_t top_logprobs = 0;  // 0 to 20
  // Log-probabilities are those at the sampling temperature (at 1 where it is 0): TokenLogprob's bits.
  bool logprobs_at_temperature = false;
  bool prompt_logprobs =
      false;  // each prompt token's, given its predecessors, in one event before the first token
  // The first prompt token whose log-probability is wanted, 1 or more: those before it may come from cached
  // pages.
  int64_t prompt_logprobs_from = 1;
  bool embedding = false;  // no tokens: the mean of the last hidden states of the prompt, in one event
  std::string tenant;      // requests of different tenants never share cached prompts
  // What the answer must look like; null: anything.
  std::shared_ptr<constrain::CompiledGrammar> grammar;
  // The token that ends generation is given as others are, but without text.
  bool end_token = false;
  bool special_text = false;  // control tokens show as text: calls of tools are written with them
  std::string adapter;        // name of a LoRA adapter that the engine was given; empty: none
};

// What a request's callback is given, in order; the last one has finish != kNone and is the only one that
// does.
struct GenerationEvent {
  bool has_token = false;
  TokenId token = 0;
  std::string text;        // newly decided text: may be empty, may be held back over several tokens
  TokenLogprobs logprobs;  // of this token, where asked for
  // Entry i is of prompt token prompt_logprobs_from + i, up to the last one.
  std::vector<TokenLogprobs> prompt_logprobs;
  std::vector<float> embedding;  // [C]
  FinishReason finish = FinishReason::kNone;
  std::string stop_text;  // the stop string that ended it, if one did
  // With kError; kIo where the request is not to blame.
  std::string error;
  ErrorKind error_kind = ErrorKind::kIo;
  // With the last event:
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  int64_t forced_tokens = 0;  // of the completion: the grammar left no choice, and they were not drawn
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

// A submitted request. Dropping the handle does not cancel.
class Generation {
 public:
  // Stops costing compute within one step, or two where steps run ahead. The callback still gets its last
  // event (kCancelled).
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> cancelled_{false};
};

struct EngineOptions {
  // Tokens a sequence may have; 0: the model's, at most 8192. Never more than the cache's pages hold.
  int64_t context = 0;
  int64_t slots = 1;  // most sequences in a step
  int64_t page_tokens = 32;
  // Of the cache; 0: as many as the slots' contexts need, or as memory_share holds, if those are fewer, but
  // at least one context.
  int64_t pages = 0;
  // Of layers with a window, in numbers of their own (KvCache); none where the model has no such layers. 0:
  // what the slots can use and as many again for cached prompts. Never fewer than the slots can use, and
  // never more than `pages`.
  int64_t sliding_pages = 0;
  // Share of the memory that is free once the weights are loaded which cache and workspaces may take, above 0
  // to 1; 0: half where it is the machine's, nine tenths where it is a device's own.
  double memory_share = 0;
  // Of a device's own memory the cache takes all of that, whatever the slots need: cached prompts stay
  // longer.
  bool fill_memory = false;
  DType kv_dtype = DType::kF16;
  int64_t batch_tokens = 512;  // budget of a step
  // Prompt tokens whose log-probabilities one step gives at most: each takes memory for its logits.
  int64_t prompt_logprob_rows = 32;
  int64_t max_queued = 1024;
  // Tokens drafted for a request in a step by looking its last ones up in what precedes them; 0: none. No
  // answer changes; a request whose drafts are not taken goes on without.
  int64_t lookup = 0;
  // A smaller model with the same tokenizer that drafts up to draft_max tokens for a request in a step, where
  // look-up finds none; null: none. No answer changes; a request for which drafts do not pay goes on without.
  std::shared_ptr<LanguageModel> draft;
  int64_t draft_max = 8;
  // A step is given to the chip before the last one's tokens have come back, where it needs none of them but
  // as input; empty: where the chip runs behind (Backend::runs_behind). No answer changes.
  std::optional<bool> run_ahead;
  bool prefix_cache = true;           // requests start from pages that earlier ones of their tenant filled
  bool share_across_tenants = false;  // and of other tenants: their answers' timing tells what was asked
  // Where cached prompts are kept across restarts, and how many bytes that may take; empty: nowhere.
  std::filesystem::path cache_directory;
  uint64_t cache_directory_bytes = uint64_t{8} << 30;
  // Hears, on the engine's thread, of a lost device and of what came of it.
  DeviceLostListener on_device_lost;
};

// Totals since the start, and what is going on now. For /metrics.
struct EngineStats {
  int64_t requests = 0, finished = 0, cancelled = 0, failed = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;  // of requests that have ended
  int64_t forced_tokens = 0;                                            // of the completions
  int64_t running = 0, waiting = 0;
  int64_t preemptions = 0;
  int64_t prefix_queries = 0, prefix_hits = 0;  // prompt tokens that were looked for and found in the cache
  struct Pages {
    int64_t total = 0;
    int64_t used = 0;    // by running requests
    int64_t cached = 0;  // in the prefix cache, in use or not
  };
  Pages pages, sliding_pages;
  int64_t drafts = 0, drafted_tokens = 0, accepted_tokens = 0;
  int64_t steps = 0;
  int64_t ahead_steps = 0;                         // given to the chip before the one before had come back
  double prefill_seconds = 0, decode_seconds = 0;  // of steps with and without prompt tokens
  EngineCondition condition = EngineCondition::kServing;
  int64_t device_restarts = 0;  // times that a lost device was had again
};

// submit() refused a request because the queue is full: a moment later it may not be.
class QueueFull : public Error {
 public:
  using Error::Error;
};

// Bytes on the chip, as planned at the start: all that an engine has there, but for some that requests with
// many penalties or biases take for themselves.
struct EngineMemory {
  uint64_t weights = 0, cache = 0, workspace = 0;  // the draft model's with them
  uint64_t free = 0, total = 0;                    // of the chip, once these were had
};

// Where the device is lost (Error(kDeviceLost) in a step), all requests taken end with that error, and the
// engine has the device, the model, its drafter and an empty cache again from the files (LanguageModel), as
// often as DeviceRestarts allows; meanwhile, and once it has given up, submit refuses.
class Engine {
 public:
  using OnEvent = std::function<void(const GenerationEvent&)>;

  // Throws Error(kTooLarge), with both sizes, where the cache does not fit in memory; Error(kInvalidInput)
  // where the draft model's tokenizer is another.
  Engine(std::shared_ptr<LanguageModel> model, const EngineOptions& options);
  ~Engine();  // cancels what runs

  // Checks the request (Error(kInvalidInput) naming the field; QueueFull, which is kUnavailable;
  // Error(kUnavailable) after drain and where the device is lost) and queues it. on_event is called on the
  // engine's thread and must return quickly.
  std::shared_ptr<Generation> submit(GenerationRequest request, OnEvent on_event);

  // Takes no more requests; returns when those taken have finished.
  void drain();

  // Writes cached prompts to the cache directory, between two steps, and returns a line that says how that
  // went; empty where there is no directory. Waits for it.
  std::string save_cache();
  // The line about what was restored at the start; empty where nothing was.
  const std::string& restored() const;

  const EngineOptions& options() const;  // with the defaults filled in
  EngineMemory memory() const;
  const LanguageModel& model() const;
  EngineStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qiao
