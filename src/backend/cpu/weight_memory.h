// Memory of weights: on huge pages, yet not at the cost of the start.
//
// Weights are read once a token: ordinary pages would cost a tenth of each. But the first touch of a huge
// page takes what the machine makes of it: 0.3 ms where it was in use lately, up to 8 ms on a virtual machine
// whose host must find it first (3.5 s a GiB, beside 1 s for ordinary pages). So memory whose first huge page
// came slowly begins on ordinary pages, and a thread beside the work turns those into huge ones
// (MADV_COLLAPSE, from Linux 6.1 on) once the model is laid out. What is computed does not depend on it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

namespace qiao::cpu {

// `take` and `settle` from any thread.
class WeightMemory {
 public:
  // `slow`: from what time of a first touch on memory begins on ordinary pages.
  explicit WeightMemory(std::chrono::microseconds slow = std::chrono::milliseconds(2)) : slow_(slow) {}
  ~WeightMemory();  // what is not huge yet stays as it is

  // 64-byte aligned; a piece of a slab of 32 MB, so that a model's many small weights share huge pages. A
  // slab lives as long as any piece of it. Error(kTooLarge) with both sizes where there is not enough.
  std::shared_ptr<std::byte> take(size_t bytes);
  // Waits until all that was taken lies on huge pages, or cannot.
  void settle();

 private:
  struct Slab {
    std::weak_ptr<std::byte> memory;
    size_t bytes;
  };
  std::shared_ptr<std::byte> allocate(size_t bytes);
  void run();

  const std::chrono::microseconds slow_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<std::byte> slab_;  // the one that pieces are taken of
  size_t used_ = 0, size_ = 0;
  std::deque<Slab> ordinary_;
  std::chrono::steady_clock::time_point taken_;  // when the last one was allocated
  bool collapsing_ = false, hurry_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace qiao::cpu
