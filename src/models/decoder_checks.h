// What the indices of a step, or of a pass of training, have to keep to before they reach a chip.
#pragma once

#include <cstdint>

#include "models/decoder.h"
#include "models/decoder_training.h"

namespace qiao {

// All of a step but its adapters, for a workspace of these limits. Throws Error(kInvalidInput) that names the
// index and what was expected.
void check_step(const StepBatch& batch, const KvCache& cache, const DecoderConfig& config,
                const Decoder::Limits& limits, bool want_logits);
// Adapters of a decoder that has so many. Throws the same.
void check_adapters(const StepBatch& batch, int32_t count);
// Of a pass of training over at most so many tokens in so many documents. Throws the same.
void check_packed(const PackedBatch& batch, int64_t tokens, int64_t documents, int64_t vocabulary);

}  // namespace qiao
