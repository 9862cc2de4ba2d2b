// What reinforcement learning is asked for beside TrainOptions.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "train/policy_loss.h"
#include "train/reward.h"

namespace qiao::train {

struct PolicyOptions {
  std::string loss = "grpo";             // grpo, dapo, gspo
  double clip_low = -1, clip_high = -1;  // below 0: the loss's own (resolved_clips)
  double beta = 0;                       // of the distance to the model that the run began from; 0: none
  std::string advantage_std = "on";      // off: Dr. GRPO's
  int64_t group = 8;                     // completions of a prompt
  int64_t max_tokens = 256;              // of a completion
  double temperature = 1;
  int64_t updates = 1;          // optimizer steps of a rollout, each on its own part of it
  int64_t resample = 3;         // dapo: most further rounds of prompts in place of groups without spread
  int64_t overlong_buffer = 0;  // tokens before max_tokens in which the reward falls by up to 1; 0: none
  int64_t slots = 64;           // sequences that are drawn at once
  RewardOptions reward;
  std::filesystem::path tools;  // a file of tools that prompts show; empty: none
  std::string tool_command;     // that answers their calls
  int64_t max_turns = 8;
};

// Throws Error(kInvalidInput) naming the flag, its value and what was expected. `batch`, `steps` and
// `sequence` are TrainOptions', `share` is a virtual rank's part of the batch.
void check_policy_options(const PolicyOptions& options, int64_t batch, int64_t share, int64_t steps,
                          int64_t sequence);

// The loss with its clips filled in: 0.2 and 0.2 for grpo, 0.2 and 0.28 for dapo, 3e-4 and 4e-4 for gspo, as
// their papers have them.
PolicyLoss make_policy_loss(const PolicyOptions& options);

}  // namespace qiao::train
