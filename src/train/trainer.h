// The training loop: data, forward and backward, clipping, AdamW, records and checkpoints.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "parallel/communicator.h"
#include "train/options.h"

namespace qiao::train {

// What a step gives; its first fields are a line of metrics.jsonl.
struct StepRecord {
  int64_t step = 0;
  double loss = 0, gradient_norm = 0, learning_rate = 0, tokens_per_second = 0;
  Json more = Json::object();  // Objective::report
  double seconds = 0;          // that it took, without what is written
  double flops = 0;  // of the model, in this process: what is made again on the way back does not count
};

// Bytes of the machine's memory at the peak of this process, stated before the first step.
struct MemoryPlan {
  uint64_t process = 0;      // the program, tokenizer, data
  uint64_t weights = 0;      // as the ops read them
  uint64_t parameters = 0;   // masters, gradients, the optimizer's states
  uint64_t activations = 0;  // of a micro-batch
  uint64_t checkpoint = 0;   // the copy from which one is written
  bool recomputes = false;   // layers, on the way back
  uint64_t total() const { return process + weights + parameters + activations + checkpoint; }
};

struct TrainReport {
  int64_t parameters = 0;  // numbers that are trained
  MemoryPlan memory;
  int64_t first_step = 1;
  double peak_flops = 0;  // what the chip can do in the model's arithmetic; 0: not measured
  // Of fp8: matrices of layers in it, and the names of those whose rows are no whole blocks.
  int64_t f8_matrices = 0;
  std::vector<std::string> unfit_matrices;
  // Of a dry run: one micro-batch was timed.
  double tokens_per_second = 0, seconds = 0;  // in all
};

class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_start(const TrainReport& report) = 0;
  virtual void on_step(const StepRecord& record) = 0;
  virtual void on_sample(int64_t, const std::string& /*prompt*/, const std::string& /*text*/) {}
  virtual void on_profile(const std::string& /*table*/) {}
  virtual void on_warning(const std::string& text) = 0;
  virtual bool should_stop() = 0;  // asked after each step: the run then ends with a checkpoint
};

// Runs to options.steps. Throws Error naming the option, file or row; kTooLarge, before the first step, with
// the numbers and what would fit; kInvalidInput where the loss or a gradient is not finite (the last
// checkpoint stays); kUnavailable where another process trains in `out`.
void train(const TrainOptions& options, TrainObserver& observer);
// In several processes (or threads), each of which calls it with a communicator of its own, on files that all
// of them see: the bytes that the run leaves are the same for 1, 2 and 4. Rank 0's observer alone hears of
// it; any rank's may stop the run. Error(kUnavailable) names a rank that is lost.
void train(const TrainOptions& options, TrainObserver& observer, Communicator& communicator);

}  // namespace qiao::train
