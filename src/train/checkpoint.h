// RUN/checkpoints/step-N: masters, the optimizer's states and where the data stands, from which a run goes on
// to the same bytes, with any number of processes: each virtual rank's tensors are a file of their own.
#pragma once

#include <filesystem>

#include "base/json.h"
#include "train/optimizer.h"
#include "train/ranks.h"

namespace qiao::train {

struct CheckpointState {
  int64_t step = 0;  // done
  Json objective;    // Objective::state
};

// Written into a folder beside, synced, then renamed by rank 0 once all ranks have written theirs; older ones
// than the last `keep` go away afterwards. All ranks call it. Throws Error(kIo) and leaves those that there
// are.
void save_checkpoint(const std::filesystem::path& run, const CheckpointState& state,
                     const Parameters& parameters, const Optimizer& optimizer, const Ranks& ranks,
                     int64_t keep);

// The newest that is whole: a damaged one (its checksum tells) is passed over for the one before it. Throws
// Error(kNotFound) where there is none, Error(kInvalidInput) naming the tensor where it is of another model
// or another optimizer. The weights are not rewritten. All ranks call it, and rank 0 chooses.
CheckpointState load_checkpoint(const std::filesystem::path& run, Parameters& parameters,
                                Optimizer& optimizer, const Ranks& ranks);

// Drops the lines of metrics.jsonl after `step`: the run makes them again.
void cut_metrics(const std::filesystem::path& run, int64_t step);

}  // namespace qiao::train
