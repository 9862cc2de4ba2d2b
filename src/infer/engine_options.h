// What an engine's options come to for a model and a machine: how many pages its cache has, and what they
// take.
#pragma once

#include <algorithm>

#include "infer/engine.h"
#include "infer/language_model.h"

namespace qiao {

// The options with the defaults filled in. Throws Error(kInvalidInput) that names them where one is out of
// range, Error(kTooLarge), with both sizes, where the cache does not fit in memory.
EngineOptions complete_options(const LanguageModel& model, const EngineOptions& options);

// Of complete options: what the cache takes, the draft model's with it.
uint64_t cache_bytes(const LanguageModel& model, const EngineOptions& options);

inline int64_t pages_per_sequence(const EngineOptions& o) {
  return (o.context + o.page_tokens - 1) / o.page_tokens;
}
inline int64_t most_step_tokens(const EngineOptions& o) { return std::max(o.batch_tokens, o.slots); }

}  // namespace qiao
