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

TEST(GroupCommunicator, NumbersItsMembers) {
  in_threads(4, 20, [](Communicator& ranks) {
    const bool is_odd = ranks.rank() % 2 == 1;
    const auto group = make_group_communicator(ranks, is_odd ? std::vector{3, 1} : std::vector{0, 2});
    EXPECT_EQ(group->size(), 2);
    EXPECT_EQ(group->rank(), ranks.rank() == 1 || ranks.rank() == 2 ? 1 : 0);
    EXPECT_EQ(group->name(0), is_odd ? "rank 3" : "rank 0");
    const int other = 1 - group->rank(), own = 10 + ranks.rank();
    int theirs = 0;
    group->exchange(other, std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(&theirs, 1)));
    EXPECT_EQ(theirs, 10 + (ranks.rank() + 2) % 4);
    group->barrier();
    ranks.barrier();
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
