// The flags of `qiao train`'s modes.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "train/options.h"

namespace qiao::cli {

struct TrainFlags {
  train::TrainOptions options;
  std::string shuffle = "on";
  bool quiet = false;
  double rank_timeout = 20;              // seconds
  std::string config;                    // a file of TOML; see run_config.h
  std::vector<std::string> config_keys;  // that it gave
  std::string run_to_resume;             // what --resume names; empty: --out
  CLI::Option* resume = nullptr;
};

// Of every mode.
void add_train_flags(CLI::App& command, TrainFlags& flags);
// Of the modes that read conversations.
void add_chat_flags(CLI::App& command, TrainFlags& flags);
void add_preference_flags(CLI::App& command, TrainFlags& flags);

}  // namespace qiao::cli
