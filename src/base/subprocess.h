// Runs another program, without a shell.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace qiao {

struct SubprocessResult {
  int exit_code = 0;       // 128 + signal where a signal ended it
  std::string output;      // the last 64 KiB of its stdout and stderr together
  bool not_found = false;  // there is no such program (exit_code 127)
};

struct SubprocessOptions {
  std::vector<std::pair<std::string, std::string>> environment;  // set beside what this process has
  std::function<void()> tick;                                    // called about ten times a second meanwhile
};

// Runs argv[0] (looked up in PATH) with these arguments and an empty stdin, and waits for its end. It is
// ended when this process ends, or where `tick` throws. Throws Error(kIo) where no process can be made.
SubprocessResult run_subprocess(const std::vector<std::string>& argv, const SubprocessOptions& options = {});

}  // namespace qiao
