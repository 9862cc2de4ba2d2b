// The threads that kernels run on. One pool a backend; the calling thread is worker 0 and works too.
#pragma once

#include <cstdint>
#include <memory>

namespace qiao {

class ThreadPool {
 public:
  // size >= 1, the caller included. size 0: as many as this process may run on (affinity and cgroup quota
  // counted). Throws Error(kTooLarge) where the system does not give as many.
  explicit ThreadPool(int size);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls body(worker) once for each worker in [0, size), in parallel, and returns when all are done. Not
  // reentrant; one caller at a time. body must not throw. Workers spin briefly between calls, then sleep on a
  // futex: an idle pool costs nothing, and a call after a sleep costs some microseconds.
  template <typename Body>
  void run(Body&& body) {
    run_erased(
        [](void* context, int worker) { (*static_cast<std::remove_reference_t<Body>*>(context))(worker); },
        const_cast<void*>(static_cast<const void*>(&body)), true);
  }

  // Splits [0, count) into chunks of `grain`; body(begin, end, worker). Each worker takes those of its own
  // run of them in order, then those that others have not begun. Which worker takes a chunk never changes a
  // result: kernels reduce inside a chunk only. A worker that the system has not let run by the time all
  // chunks are taken is not waited for.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body);

 private:
  void run_erased(void (*function)(void*, int), void* context, bool every);
  void stop();
  struct State;
  std::unique_ptr<State> state_;
};

// How many threads this process may keep busy: affinity mask and cgroup CPU quota, at least 1.
int usable_cpus();

}  // namespace qiao

#include "base/thread_pool_inline.h"
