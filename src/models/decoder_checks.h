// What a step's indices have to keep to before they reach a chip.
#pragma once

#include <cstdint>

#include "models/decoder.h"

namespace qiao {

// All of a step but its adapters, for a workspace of these limits. Throws Error(kInvalidInput) that names the
// index and what was expected.
void check_step(const StepBatch& batch, const KvCache& cache, const DecoderConfig& config,
                const Decoder::Limits& limits, bool want_logits);
// Adapters of a decoder that has so many. Throws the same.
void check_adapters(const StepBatch& batch, int32_t count);

}  // namespace qiao
