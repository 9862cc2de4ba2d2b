// Signs of life between processes, beside what they send each other: a process that dies closes its
// connection, and one that hangs falls silent. A thread of its own in each process beats and listens, so a
// rank that computes for minutes is alive, and one that the system stopped is not.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace qiao {

class Heartbeat {
 public:
  // Connects every rank with rank 0 by TCP (what they need for it goes by `communicator`) and begins. Where a
  // rank is lost, hangs for options.patience_seconds, or SIGTERM comes because the launcher has noticed first
  // (where it is ours to take), the first rank that is left calls `tell` with a line that names the rank and
  // its host, and each ends its process with exit code 1. Throws Error(kUnavailable) where they cannot
  // connect.
  Heartbeat(Communicator& communicator, const MpiOptions& options,
            std::function<void(const std::string&)> tell);
  // After a barrier behind which no rank does anything that could fail: ends in peace.
  ~Heartbeat();
  // This process is about to end with an error that it tells itself: the others end without a word.
  void give_up();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qiao
