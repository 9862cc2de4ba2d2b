// One job at a time on a thread of its own: a checkpoint is written while training goes on.
#pragma once

#include <functional>
#include <future>

namespace qiao::train {

class Background {
 public:
  ~Background();  // waits

  // After the one before has been waited for.
  void start(std::function<void()> job);
  bool is_done() const;  // there is none that runs
  // Waits for the last job and throws what it threw, once.
  void finish();

 private:
  std::future<void> pending_;
};

}  // namespace qiao::train
