// What a completion is worth, and what a tool answers, by programs of the user's own: one line of JSON in,
// one out.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/subprocess.h"

namespace qiao::train {

// A program that stays, from the first question to the end of the run.
class LineProgram {
 public:
  // `what` and `how` name it in errors ("reward", "python3 count.py").
  LineProgram(std::string what, std::string how, const std::vector<std::string>& argv,
              std::chrono::milliseconds limit);
  // By /bin/sh.
  LineProgram(std::string what, const std::string& command, std::chrono::milliseconds limit);

  // The line that it answers. Throws Error(kIo) naming `where`, the program and what it did: ended, took
  // longer than the limit, or wrote what nobody asked for.
  std::string ask(const Json& question, const std::string& where);
  [[noreturn]] void refuse(const std::string& where, const std::string& answer,
                           const std::string& expected) const;

 private:
  std::string what_, how_;
  std::chrono::milliseconds limit_;
  PipedProcess process_;
};

struct RewardOptions {
  std::string command;        // or:
  std::string python;         // FILE.py[:NAME]: a function of one dictionary; NAME is "reward" by default
  double limit_seconds = 60;  // for one completion
};

struct Reward {
  double value = 0;
  std::vector<std::pair<std::string, double>> figures;  // what else it told, by name
};

class Rewarder {
 public:
  // Throws Error(kInvalidInput) where there is not exactly one of command and function, Error(kNotFound)
  // where the file of the function is not there.
  explicit Rewarder(const RewardOptions& options);
  // Its answer must be a finite number, or an object with one under "reward" and others beside it (true and
  // false count as 1 and 0). Throws Error(kIo) naming `where` and the answer.
  Reward of(const Json& completion, const std::string& where);

 private:
  LineProgram program_;
};

}  // namespace qiao::train
