// The training loop: data, forward and backward, clipping, AdamW, records and checkpoints.
#pragma once

#include <string>

#include "base/json.h"
#include "parallel/communicator.h"
#include "train/options.h"

namespace qiao::train {

// What a step gives; also a line of metrics.jsonl.
struct StepRecord {
  int64_t step = 0;
  double loss = 0, gradient_norm = 0, learning_rate = 0, tokens_per_second = 0;
  Json more = Json::object();  // Objective::report
};

struct TrainReport {
  int64_t parameters = 0;   // numbers that are trained
  size_t memory_bytes = 0;  // of the chip: weights, masters, gradients, moments, activations
};

class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_start(const TrainReport& report) = 0;
  virtual void on_step(const StepRecord& record) = 0;
  virtual void on_warning(const std::string& text) = 0;
  virtual bool should_stop() = 0;  // asked after each step: the run then ends with a checkpoint
};

// Runs to options.steps. Throws Error naming the option, file or row; kInvalidInput where the loss or a
// gradient is not finite (the last checkpoint stays).
void train(const TrainOptions& options, TrainObserver& observer);
// In several processes (or threads), each of which calls it with a communicator of its own, on files that all
// of them see: the bytes that the run leaves are the same for 1, 2 and 4. Rank 0's observer alone hears of
// it; any rank's may stop the run. Error(kUnavailable) names a rank that is lost.
void train(const TrainOptions& options, TrainObserver& observer, Communicator& communicator);

}  // namespace qiao::train
