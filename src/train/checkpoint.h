// RUN/checkpoints/step-N: masters, the optimizer's states and where the data stands, from which a run goes on
// to the same bytes, with any number of processes: each virtual rank's tensors are a file of their own.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "base/json.h"
#include "train/optimizer.h"
#include "train/ranks.h"
#include "train/snapshot.h"

namespace qiao::train {

struct CheckpointState {
  int64_t step = 0;   // done
  uint64_t seed = 0;  // of all random streams: with another the run would not go on to the same bytes
  Json objective;     // Objective::state
};

// Written into a folder beside, synced, then renamed by rank 0 once all ranks have written theirs; older ones
// than the last `keep` go away afterwards. All ranks call it. Throws Error(kIo), on all ranks where it failed
// on one, and leaves those that there are, and nothing half written.
void save_checkpoint(const std::filesystem::path& run, const CheckpointState& state, const Snapshot& snapshot,
                     const Ranks& ranks, int64_t keep);

// The newest that is whole: a damaged one (its checksum tells) is passed over for the one before it, which
// `warn` hears, and removed. Step 0 where a run is here that has not come to its first checkpoint. Throws
// Error(kNotFound) where there is no run, or no checkpoint is whole; Error(kInvalidInput) naming the tensor
// where it is of another model or another optimizer. The weights are not rewritten. All ranks call it, and
// rank 0 chooses.
CheckpointState load_checkpoint(const std::filesystem::path& run, Parameters& parameters,
                                Optimizer& optimizer, const Ranks& ranks,
                                const std::function<void(const std::string&)>& warn);

bool has_checkpoint(const std::filesystem::path& run);

}  // namespace qiao::train
