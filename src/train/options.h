// What a run is asked for: every field is a flag of `qiao train` and a key of its --config file.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "train/data.h"
#include "train/parameters.h"
#include "train/policy_options.h"

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
  std::optional<PolicyOptions> policy;  // reinforcement learning; else the next token is taught
};

// Throws Error(kInvalidInput) naming the flag, its value and what was expected.
void check_options(const TrainOptions& options);

// The learning rate of a step (from 1).
double learning_rate(const TrainOptions& options, int64_t step);

}  // namespace qiao::train
