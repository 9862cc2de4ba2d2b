// The flags of `qiao train grpo` beside those of every mode.
#pragma once

#include "cli/train_flags.h"

namespace qiao::cli {

void add_grpo_flags(CLI::App& mode, TrainFlags& flags);

}  // namespace qiao::cli
