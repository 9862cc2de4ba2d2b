#include "parallel/communicator.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "support/expect_error.h"

namespace qiao {
namespace {

void in_threads(int size, double patience, const std::function<void(Communicator&)>& body) {
  auto communicators = make_thread_communicators(size, patience);
  std::vector<std::thread> threads;
  for (auto& communicator : communicators)
    threads.emplace_back([&body, own = std::move(communicator)] { body(*own); });
  for (std::thread& thread : threads) thread.join();
}

TEST(ThreadCommunicator, MessagesArriveInTheirOrder) {
  in_threads(3, 20, [](Communicator& ranks) {
    const int next = (ranks.rank() + 1) % 3, before = (ranks.rank() + 2) % 3;
    for (int i = 0; i < 100; ++i) {
      const std::array<int, 2> values = {ranks.rank(), i};
      ranks.send_values(next, std::span<const int>(values));
    }
    for (int i = 0; i < 100; ++i) {
      std::array<int, 2> values{};
      ranks.receive_values(before, std::span<int>(values));
      EXPECT_EQ(values, (std::array<int, 2>{before, i}));
    }
    ranks.finish();
  });
}

TEST(ThreadCommunicator, ABarrierWaitsForAll) {
  std::atomic<int> came = 0;
  in_threads(4, 20, [&](Communicator& ranks) {
    for (int round = 1; round <= 20; ++round) {
      if (ranks.rank() == round % 4) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++came;
      ranks.barrier();
      EXPECT_GE(came, 4 * round);
      ranks.barrier();
    }
    ranks.finish();
  });
}

TEST(ThreadCommunicator, WhoIsLostIsNamed) {
  in_threads(2, 20, [](Communicator& ranks) {
    if (ranks.rank() == 1) return;
    std::byte byte{};
    EXPECT_QIAO_ERROR(ranks.receive(1, {&byte, 1}), kUnavailable, "rank 1 is lost");
    EXPECT_QIAO_ERROR(ranks.send(1, {&byte, 1}), kUnavailable, "rank 1 is lost");
  });
}

TEST(ThreadCommunicator, WhoHangsIsNamed) {
  std::atomic<bool> done = false;
  in_threads(2, 0.05, [&](Communicator& ranks) {
    while (ranks.rank() == 1 && !done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (ranks.rank() == 1) return;
    std::byte byte{};
    EXPECT_QIAO_ERROR(ranks.receive(1, {&byte, 1}), kUnavailable, "rank 1 hangs", "0.05 s");
    done = true;
  });
}

TEST(LoneCommunicator, NeedsNobody) {
  const auto alone = make_lone_communicator();
  EXPECT_EQ(alone->size(), 1);
  alone->barrier();
  alone->finish();
}

}  // namespace
}  // namespace qiao
