// What a run will take of the machine's memory, known before it takes most of it.
#pragma once

#include <cstdint>

#include "models/decoder_training.h"
#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/snapshot.h"
#include "train/trainer.h"

namespace qiao::train {

struct MicroBatch {
  int64_t tokens = 0, documents = 0;    // at most
  int64_t sequences = 0, sequence = 0;  // --micro-batch, and the tokens of each
  PassNeeds needs;
};

// Of a process that has loaded its decoder, data and all else but what is planned here.
MemoryPlan plan_memory(const Decoder& decoder, const Parameters& parameters, const Optimizer& optimizer,
                       const ModelFiles& files, const MicroBatch& batch, Recompute recompute,
                       Snapshot::Kind snapshot, const Ranks& ranks);

// Throws Error(kTooLarge), with every part of the plan, what is free and the largest micro-batch, or else
// sequence, that fits, where the plan does not. kAuto: what fits is told of layers that are computed again.
void check_memory(const MemoryPlan& plan, const Decoder& decoder, const MicroBatch& batch,
                  Recompute recompute);

}  // namespace qiao::train
