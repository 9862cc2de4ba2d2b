// One job at a time on a thread of its own: a checkpoint is written while training goes on.
#pragma once

#include <functional>
#include <future>
#include <string>

namespace qiao::train {

class Background {
 public:
  ~Background();  // waits

  // Starts `job` after waiting for the one before, whose failure goes to `warn` on the caller's thread.
  void start(std::function<void()> job, const std::function<void(const std::string&)>& warn);
  // Waits for the last job and throws what it threw.
  void finish();
  // Waits; a failure goes to `warn`.
  void wait(const std::function<void(const std::string&)>& warn);

 private:
  std::future<void> pending_;
};

}  // namespace qiao::train
