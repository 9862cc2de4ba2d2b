// Runs other programs, without a shell.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
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

// A program that stays and is spoken to: a line in, a line out. One thread at a time.
class PipedProcess {
 public:
  // Starts argv[0] (looked up in PATH) in a process group of its own: no key of the terminal reaches it.
  // Throws Error(kIo) where no process can be made; that there is no such program the first exchange tells.
  explicit PipedProcess(const std::vector<std::string>& argv);
  PipedProcess(const PipedProcess&) = delete;
  PipedProcess& operator=(const PipedProcess&) = delete;
  // Closes its stdin, and ends it and what it has started if it does not end of itself within a second.
  ~PipedProcess();

  // Writes `line` and a line end; the next line that the program writes, without its end. Throws Error(kIo),
  // with the last words of its stderr, where it has ended, has written what nobody asked for, takes longer
  // than `limit` or writes a line of more than `most_bytes`: no exchange is possible after that.
  std::string exchange(std::string_view line, std::chrono::milliseconds limit,
                       size_t most_bytes = size_t{16} << 20);

 private:
  [[noreturn]] void fail(const std::string& what);
  [[noreturn]] void fail_ended();
  bool take_output(size_t most_bytes);
  void take_errors();
  std::string name_;
  int pid_ = 0, status_ = 0;
  bool ended_ = false;
  int input_ = -1, output_ = -1, errors_ = -1;  // -1: closed
  std::string read_, last_words_;
};

}  // namespace qiao
