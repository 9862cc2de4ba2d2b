#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "base/error.h"
#include "parallel/communicator.h"

namespace qiao {
namespace {

// What the threads share: the messages on their way from each to each.
class ThreadGroup {
 public:
  ThreadGroup(int size, double patience)
      : size_(size),
        patience_(patience),
        messages_(static_cast<size_t>(size * size)),
        gone_(messages_.size()) {}
  int size() const { return size_; }

  void send(int from, int to, std::span<const std::byte> bytes) {
    const std::lock_guard lock(mutex_);
    if (gone_[static_cast<size_t>(to)]) fail(to, "is lost");
    queue(from, to).emplace_back(bytes.begin(), bytes.end());
    changed_.notify_all();
  }
  void receive(int from, int to, std::span<std::byte> bytes) {
    std::unique_lock lock(mutex_);
    auto& waiting = queue(from, to);
    const bool came = changed_.wait_for(lock, std::chrono::duration<double>(patience_),
                                        [&] { return !waiting.empty() || gone_[static_cast<size_t>(from)]; });
    if (!came) fail(from, fmt::format("hangs: nothing came for {} s", patience_));
    if (waiting.empty()) fail(from, "is lost");
    const std::vector<std::byte> message = std::move(waiting.front());
    waiting.pop_front();
    QIAO_ASSERT(message.size() == bytes.size());
    std::ranges::copy(message, bytes.begin());  // of none there may be no address
  }
  void leave(int rank) {
    const std::lock_guard lock(mutex_);
    gone_[static_cast<size_t>(rank)] = true;
    changed_.notify_all();
  }

 private:
  [[noreturn]] static void fail(int rank, const std::string& what) {
    throw_error(ErrorKind::kUnavailable, "rank {} {}", rank, what);
  }
  std::deque<std::vector<std::byte>>& queue(int from, int to) {
    return messages_[static_cast<size_t>(from) * static_cast<size_t>(size_) + static_cast<size_t>(to)];
  }

  int size_;
  double patience_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::deque<std::vector<std::byte>>> messages_;
  std::vector<bool> gone_;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank) : group_(std::move(group)), rank_(rank) {}
  ~ThreadCommunicator() override { group_->leave(rank_); }
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  std::string name(int rank) const override { return fmt::format("rank {}", rank); }
  int sharing_cores() const override { return size(); }
  int sharing_host() const override { return size(); }
  int place_on_host() const override { return rank_; }
  void send(int to, std::span<const std::byte> bytes) override { group_->send(rank_, to, bytes); }
  void receive(int from, std::span<std::byte> bytes) override { group_->receive(from, rank_, bytes); }
  void finish() override { barrier(); }
  void end_all(const std::string& why) override { throw_error(ErrorKind::kUnavailable, "{}", why); }

 private:
  std::shared_ptr<ThreadGroup> group_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size, double patience_seconds) {
  const auto group = std::make_shared<ThreadGroup>(size, patience_seconds);
  std::vector<std::unique_ptr<Communicator>> made;
  for (int rank = 0; rank < size; ++rank) made.push_back(std::make_unique<ThreadCommunicator>(group, rank));
  return made;
}

}  // namespace qiao
