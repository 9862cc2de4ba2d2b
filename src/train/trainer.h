// The training loop: data, forward and backward, clipping, AdamW, records and checkpoints.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "train/data.h"
#include "train/parameters.h"

namespace qiao::train {

struct TrainOptions {
  std::filesystem::path init;  // a Hugging Face directory: configuration, weights, tokenizer
  std::filesystem::path out;   // RUN: metrics.jsonl, checkpoints/, model/
  bool resume = false;         // go on with the run that `out` holds
  DataOptions data;
  int64_t steps = 0;
  int64_t batch = 8;        // sequences of a step
  int64_t micro_batch = 0;  // sequences that are computed at once; 0: all of the batch
  AdamWSettings optimizer;
  std::string schedule = "cosine";   // constant, linear, cosine
  int64_t warmup = 0;                // steps in which the learning rate grows from 0
  double least_learning_rate = 0.1;  // where linear and cosine end, as a share of the rate
  double clip = 1.0;                 // largest norm of the gradient; 0: any
  int64_t checkpoint_every = 100;    // steps; 0: at the end alone
  int64_t keep_checkpoints = 2;
  std::string device = "auto";
  int threads = 0;
  bool dry_run = false;
};

// What a step gives; also a line of metrics.jsonl.
struct StepRecord {
  int64_t step = 0;
  double loss = 0, gradient_norm = 0, learning_rate = 0, tokens_per_second = 0;
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

// The learning rate of a step (from 1).
double learning_rate(const TrainOptions& options, int64_t step);

// Runs to options.steps. Throws Error naming the option, file or row; kInvalidInput where the loss or a
// gradient is not finite (the last checkpoint stays).
void train(const TrainOptions& options, TrainObserver& observer);

}  // namespace qiao::train
