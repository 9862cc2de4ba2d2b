#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace qiao {
namespace {

TEST(ThreadPoolTest, RunCallsEachWorkerOnce) {
  for (int size = 1; size <= 8; ++size) {
    ThreadPool pool(size);
    ASSERT_EQ(pool.size(), size);
    for (int round = 0; round < 20; ++round) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(size));
      std::mutex mutex;
      std::set<std::thread::id> threads;
      pool.run([&](int worker) {
        ++calls[static_cast<size_t>(worker)];
        const std::lock_guard lock(mutex);
        threads.insert(std::this_thread::get_id());
      });
      for (const auto& count : calls) ASSERT_EQ(count.load(), 1);
      ASSERT_EQ(threads.size(), static_cast<size_t>(size));
    }
  }
}

TEST(ThreadPoolTest, TheCallerIsWorkerZero) {
  ThreadPool pool(3);
  std::thread::id zero;
  pool.run([&](int worker) {
    if (worker == 0) zero = std::this_thread::get_id();
  });
  EXPECT_EQ(zero, std::this_thread::get_id());
}

TEST(ThreadPoolTest, ParallelForCoversEachIndexOnce) {
  for (int size = 1; size <= 8; ++size) {
    ThreadPool pool(size);
    for (const int64_t count : {0, 1, 2, 7, 8, 63, 64, 1000}) {
      for (const int64_t grain : {-1, 0, 1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
        pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int worker) {
          ASSERT_LT(begin, end);
          ASSERT_GE(worker, 0);
          ASSERT_LT(worker, size);
          for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
        });
        for (const auto& times : seen) ASSERT_EQ(times.load(), 1) << size << " " << count << " " << grain;
      }
    }
  }
}

// Where a chunk begins must not depend on how many workers there are: kernels' results would.
TEST(ThreadPoolTest, ChunksBeginAtMultiplesOfTheGrain) {
  for (int size = 2; size <= 5; ++size) {
    ThreadPool pool(size);
    pool.parallel_for(1003, 10, [](int64_t begin, int64_t end, int) {
      EXPECT_EQ(begin % 10, 0);
      EXPECT_EQ(end, std::min<int64_t>(begin + 10, 1003));
    });
  }
}

TEST(ThreadPoolTest, ManyQuickCallsLoseNothing) {
  ThreadPool pool(4);
  std::atomic<int64_t> sum{0};
  constexpr int kCalls = 300;
  for (int call = 0; call < kCalls; ++call) pool.run([&](int worker) { sum += worker + 1; });
  EXPECT_EQ(sum.load(), kCalls * (1 + 2 + 3 + 4));
}

// What one call writes, plainly, the next sees from any worker.
TEST(ThreadPoolTest, CallsAreOrderedForMemory) {
  ThreadPool pool(4);
  std::vector<int> values(4);
  for (int call = 0; call < 100; ++call) {
    pool.run([&](int worker) {
      const auto i = static_cast<size_t>(worker);
      values[i] = values[i] + 1;
    });
    pool.run([&](int worker) {
      const auto neighbour = static_cast<size_t>((worker + 1) % 4);
      ASSERT_EQ(values[neighbour], call + 1);
    });
  }
}

TEST(ThreadPoolTest, WakesAfterASleepAndSleepsWithoutCost) {
  ThreadPool pool(4);
  std::atomic<int> calls{0};
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // far over the spin
    pool.run([&](int) { ++calls; });
  }
  EXPECT_EQ(calls.load(), 5 * 4);
  const auto cpu_seconds = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(cpu_seconds() - before, 0.1);  // one spinning worker alone would take 0.2
}

// A worker that is slow to arrive while the caller has long finished, and the other way round.
TEST(ThreadPoolTest, WaitsForTheSlowest) {
  ThreadPool pool(3);
  for (int slow = 0; slow < 3; ++slow) {
    std::atomic<int> done{0};
    pool.run([&](int worker) {
      if (worker == slow) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ++done;
    });
    ASSERT_EQ(done.load(), 3);
  }
}

TEST(ThreadPoolTest, APoolMayEndUnusedOrAsleep) {
  for (int round = 0; round < 50; ++round) {
    ThreadPool unused(4);
  }
  ThreadPool asleep(4);
  asleep.run([](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

TEST(ThreadPoolTest, SizeZeroTakesWhatTheMachineGives) {
  EXPECT_GE(usable_cpus(), 1);
  EXPECT_LE(usable_cpus(), static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_EQ(ThreadPool(0).size(), usable_cpus());
}

TEST(ThreadPoolTest, AConstBodyAndATemporaryRun) {
  ThreadPool pool(2);
  std::atomic<int> calls{0};
  const auto body = [&](int) { ++calls; };
  pool.run(body);
  pool.run([&](int) { ++calls; });
  EXPECT_EQ(calls.load(), 4);
}

}  // namespace
}  // namespace qiao
