// One job at a time beside the caller, or when the caller waits for it: a checkpoint is written while
// training goes on, or at its end.
#pragma once

#include <cstdint>
#include <functional>
#include <future>

namespace qiao::train {

class Background {
 public:
  enum class When : uint8_t { kNow, kAtFinish };  // on a thread of its own; on the one that calls finish()

  ~Background();  // waits for one that runs

  // After the one before has been waited for.
  void start(std::function<void()> job, When when = When::kNow);
  bool is_done() const;  // there is none that runs
  // Waits for the last job and throws what it threw, once.
  void finish();

 private:
  std::future<void> pending_;
};

}  // namespace qiao::train
