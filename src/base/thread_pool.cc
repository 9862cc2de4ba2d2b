#include "base/thread_pool.h"

#include <sched.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

namespace qiao {
namespace {

// About 20 µs: longer than the gap between two ops of a small model, far shorter than the gap between two
// requests.
constexpr int kSpins = 2000;

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> workers;
  // A call publishes function and context, opens the door for its generation and raises `generation`, which
  // workers watch. A worker that finds the door open goes in, works, and comes out; one that comes late finds
  // it shut and does nothing. The call shuts the door when it may and returns when everybody is out.
  void (*function)(void*, int) = nullptr;
  void* context = nullptr;
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<uint64_t> door{kShut};  // generation in the high half, kShut, workers inside
  std::atomic<int> done{0};                       // workers that came out
  std::atomic<bool> stopping{false};

  static constexpr uint64_t kShut = uint64_t{1} << 31;
  static constexpr uint64_t kInside = kShut - 1;

  bool enter(uint32_t call) {
    uint64_t seen = door.load(std::memory_order_acquire);
    while (seen >> 32 == call && (seen & kShut) == 0) {
      if (door.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void work(int worker) {
    uint32_t seen = 0;
    while (true) {
      uint32_t now = generation.load(std::memory_order_acquire);
      for (int spin = 0; now == seen && spin < kSpins; ++spin) {
        pause_briefly();
        now = generation.load(std::memory_order_acquire);
      }
      if (now == seen) {
        generation.wait(seen, std::memory_order_acquire);
        continue;
      }
      seen = now;
      if (stopping.load(std::memory_order_relaxed)) return;
      if (!enter(seen)) continue;
      function(context, worker);
      done.fetch_add(1, std::memory_order_release);
      done.notify_one();
      door.fetch_sub(1, std::memory_order_acq_rel);
      door.notify_one();
    }
  }

  // Waits until ready(value): the value must not come back to an earlier one before that.
  template <typename T, typename Ready>
  static void wait(const std::atomic<T>& value, Ready&& ready) {
    T now = value.load(std::memory_order_acquire);
    for (int spin = 0; !ready(now) && spin < kSpins; ++spin) {
      pause_briefly();
      now = value.load(std::memory_order_acquire);
    }
    while (!ready(now)) {
      value.wait(now, std::memory_order_acquire);
      now = value.load(std::memory_order_acquire);
    }
  }
};

ThreadPool::ThreadPool(int size) : state_(std::make_unique<State>()) {
  if (size <= 0) size = usable_cpus();
  try {
    for (int worker = 1; worker < size; ++worker) {
      state_->workers.emplace_back([state = state_.get(), worker] { state->work(worker); });
    }
  } catch (const std::system_error& error) {
    const size_t started = state_->workers.size() + 1;
    stop();
    throw_error(ErrorKind::kTooLarge, "{} threads were asked for, {} could be started: {}", size, started,
                error.what());
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  state_->stopping.store(true, std::memory_order_relaxed);
  state_->generation.fetch_add(1, std::memory_order_release);
  state_->generation.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::size() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run_erased(void (*function)(void*, int), void* context, bool every) {
  State& state = *state_;
  if (state.workers.empty()) {
    function(context, 0);
    return;
  }
  const uint32_t call = state.generation.load(std::memory_order_relaxed) + 1;
  state.function = function;
  state.context = context;
  state.done.store(0, std::memory_order_relaxed);
  state.door.store(uint64_t{call} << 32, std::memory_order_release);
  state.generation.store(call, std::memory_order_release);
  state.generation.notify_all();
  function(context, 0);
  if (every) {
    const int workers = static_cast<int>(state.workers.size());
    State::wait(state.done, [&](int done) { return done == workers; });
  }
  state.door.fetch_or(State::kShut, std::memory_order_acq_rel);
  State::wait(state.door, [](uint64_t door) { return (door & State::kInside) == 0; });
}

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  if (std::FILE* file =
          std::fopen("/sys/fs/cgroup/cpu.max", "r")) {  // cgroup v2: "QUOTA PERIOD" or "max PERIOD"
    double quota = 0, period = 0;
    if (std::fscanf(file, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0) {
      count = std::min(count, std::max(1, static_cast<int>(std::ceil(quota / period))));
    }
    std::fclose(file);
  }
  return std::max(count, 1);
}

}  // namespace qiao
