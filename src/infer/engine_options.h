// What an engine's options come to for a model and a machine: how many pages its cache has, and what they
// take.
#pragma once

#include <algorithm>

#include "infer/draft_model.h"
#include "infer/engine.h"
#include "infer/language_model.h"
#include "infer/step_runner.h"

namespace qiao {

// The options with the defaults filled in. Throws Error(kInvalidInput) that names them where one is out of
// range, Error(kTooLarge), with both sizes, where the cache does not fit in memory.
EngineOptions complete_options(const LanguageModel& model, const EngineOptions& options);

// Whether steps are given to the chip before the results of the last one have come back.
bool runs_ahead(const LanguageModel& model, const EngineOptions& options);

// Of complete options: what the cache and the steps take, the draft model's with them.
uint64_t cache_bytes(const LanguageModel& model, const EngineOptions& options);
uint64_t workspace_bytes(const LanguageModel& model, const EngineOptions& options);

inline int64_t pages_per_sequence(const EngineOptions& o) {
  return (o.context + o.page_tokens - 1) / o.page_tokens;
}
inline int64_t most_step_tokens(const EngineOptions& o) { return std::max(o.batch_tokens, o.slots); }

inline StepRunner::Limits step_limits(const EngineOptions& o) {
  return {.sequences = o.slots,
          .pages_per_sequence = pages_per_sequence(o),
          .tokens = most_step_tokens(o),
          .prompt_logprob_rows = o.prompt_logprob_rows};
}
inline DraftModel::Limits draft_limits(const EngineOptions& o) {
  return {.pages = o.pages,
          .page_tokens = o.page_tokens,
          .sequences = o.slots,
          .pages_per_sequence = pages_per_sequence(o),
          .tokens = most_step_tokens(o)};
}

}  // namespace qiao
