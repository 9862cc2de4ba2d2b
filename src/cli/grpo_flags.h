// `qiao train grpo`.
#pragma once

#include <functional>

#include "cli/train_flags.h"

namespace qiao::cli {

// Adds the mode to `train`; `run` trains.
void add_grpo_mode(CLI::App& train, std::function<void(TrainFlags)> run);

}  // namespace qiao::cli
