// RUN/checkpoints/step-N: masters, moments and where the data stands, from which a run goes on to the same
// bytes.
#pragma once

#include <filesystem>

#include "base/json.h"
#include "train/parameters.h"

namespace qiao::train {

struct CheckpointState {
  int64_t step = 0;  // done
  Json objective;    // Objective::state
};

// Written into a folder beside, synced, then renamed; older ones than the last `keep` go away afterwards.
// Throws Error(kIo) and leaves those that there are.
void save_checkpoint(const std::filesystem::path& run, const CheckpointState& state, Parameters& parameters,
                     int64_t keep);

// The newest that is whole: a damaged one (its checksum tells) is passed over for the one before it. Throws
// Error(kNotFound) where there is none, Error(kInvalidInput) naming the tensor where it is of another model.
CheckpointState load_checkpoint(const std::filesystem::path& run, Parameters& parameters);

// Drops the lines of metrics.jsonl after `step`: the run makes them again.
void cut_metrics(const std::filesystem::path& run, int64_t step);

}  // namespace qiao::train
