// The flags of `qiao train`'s modes.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "train/options.h"

namespace qiao::cli {

struct TrainFlags {
  train::TrainOptions options;
  std::string shuffle = "on";
  bool quiet = false;
  int64_t log_every = 10;
};

void add_train_flags(CLI::App& command, TrainFlags& flags);

}  // namespace qiao::cli
