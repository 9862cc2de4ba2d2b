// What a run will take of the machine's memory, known before it takes most of it.
#pragma once

#include <cstdint>

#include "models/decoder_training.h"
#include "train/parameters.h"
#include "train/trainer.h"

namespace qiao::train {

// Of a process that has loaded its decoder, data and all else but what is planned here: `tokens` and
// `documents` of a micro-batch.
MemoryPlan plan_memory(const Decoder& decoder, const Parameters& parameters, const ModelFiles& files,
                       int64_t tokens, int64_t documents);

// Throws Error(kTooLarge), with every part of the plan, what is free and the largest micro-batch, or else
// sequence, that fits, where the plan does not: `micro_batch` sequences of `sequence` tokens make up
// `tokens` and `documents`.
void check_memory(const MemoryPlan& plan, const Decoder& decoder, int64_t tokens, int64_t documents,
                  int64_t micro_batch, int64_t sequence);

}  // namespace qiao::train
