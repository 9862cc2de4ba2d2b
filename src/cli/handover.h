// How `qiao serve` is stopped and restarted: signals as a queue, and a listening socket that one process
// inherits and passes on to the next, so that a restart loses no request.
#pragma once

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace qiao::cli {

// SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 as a queue. Made before any thread, once in a process: those that come
// later must not take the signals. Until begin(), SIGINT and SIGTERM end the process at once (loading can be
// interrupted); the others wait.
class ServeSignals {
 public:
  static constexpr int kHandedOver = -1;   // pushed by us: a successor serves
  static constexpr int kNoSuccessor = -2;  // pushed by us: it has ended instead
  static constexpr int kDeviceLost = -3;   // pushed by us: the engine has given up

  ServeSignals();
  void begin();
  int wait();             // the next signal
  void push(int signal);  // safe from any thread

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<int> queue_;
  bool begun_ = false;
};

// The socket that was passed to this process in the way of systemd's socket units (LISTEN_PID, LISTEN_FDS),
// or -1. The variables are removed: they are not meant for children. Throws Error(kInvalidInput) where they
// say other than one socket.
int inherited_socket();

// Tells who started this process that it serves: the predecessor, and systemd (NOTIFY_SOCKET), where there.
void announce_ready();

// What is needed to start this program again as it was started: read before its file may be replaced.
struct Restart {
  Restart();
  std::filesystem::path program;
  std::vector<std::string> arguments;  // the program's name first
};

// Starts the program again with `listening_fd` as its inherited socket; returns its process's id.
// `on_outcome` hears, on a thread of its own, whether it serves; if not, it has ended. Throws Error(kIo)
// where no process can be started.
int start_successor(const Restart& restart, int listening_fd, std::function<void(bool serves)> on_outcome);

}  // namespace qiao::cli
