// Writes checkpoints, and the model from them, on a thread of its own while the run goes on: a step waits for
// a copy alone. A run that writes at its end alone needs neither thread nor copy. Several processes write
// their shares side by side; between steps they tell each other when all have, and rank 0 does the rest.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "train/background.h"
#include "train/checkpoint.h"
#include "train/options.h"
#include "train/ranks.h"
#include "train/snapshot.h"

namespace qiao::train {

class Saver {
 public:
  struct Setup {
    const TrainOptions& options;
    const Parameters& parameters;
    const Optimizer& optimizer;
    const Ranks& ranks;
    std::function<void(const MasterOf&)> write_model;  // into RUN/model, on rank 0; throws Error
    std::function<void(const std::string&)> warn;
    Snapshot::Kind snapshot = Snapshot::Kind::kCopy;  // kInPlace: finish() follows what is begun
  };
  // In place, where no checkpoint is due while steps are still to come and one process has all of the model.
  static Snapshot::Kind needed_for(const TrainOptions& options);

  // Takes the memory of the copy. What it refers to outlives it. All that follows is called by all ranks
  // alike, and throws Error(kUnavailable) where one is lost.
  explicit Saver(Setup setup);

  // Copies, and begins to write a checkpoint and the model; of what fails later `warn` hears. Waits for the
  // one before.
  void begin(const CheckpointState& state);
  // The model alone: the checkpoint of this step is there.
  void begin_model(int64_t step);
  // Between steps.
  void poll();
  // Waits until all is written; where it is not, `warn` hears why.
  void settle();
  // The same at the end: throws Error, on all ranks, where the last was not.
  void finish();

 private:
  void start(std::function<void()> job);
  void exchange();
  void start_shares();
  void publish(bool is_new);
  std::string wait_for_job();
  void wait();
  std::string not_written(const std::string& why) const;

  Setup setup_;
  Snapshot snapshot_;
  CheckpointState state_;
  std::vector<std::string> checksums_;  // by virtual rank, of the checkpoint that is being written
  bool shares_pending_ = false;         // several processes write theirs
  std::string failure_;                 // of the last; on ranks other than 0 only their own
  Background writer_;                   // reads the snapshot; last: it ends before what it uses
};

}  // namespace qiao::train
