#include <algorithm>

#include "base/error.h"
#include "parallel/communicator.h"

namespace qiao {
namespace {

class GroupCommunicator final : public Communicator {
 public:
  GroupCommunicator(Communicator& whole, std::vector<int> members)
      : whole_(whole), members_(std::move(members)) {
    const auto own = std::ranges::find(members_, whole.rank());
    QIAO_ASSERT(own != members_.end());
    rank_ = static_cast<int>(own - members_.begin());
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  std::string name(int rank) const override { return whole_.name(member(rank)); }
  int sharing_cores() const override { return whole_.sharing_cores(); }
  int sharing_host() const override { return whole_.sharing_host(); }
  int place_on_host() const override { return whole_.place_on_host(); }
  void send(int to, std::span<const std::byte> bytes) override { whole_.send(member(to), bytes); }
  void receive(int from, std::span<std::byte> bytes) override { whole_.receive(member(from), bytes); }
  void exchange(int other, std::span<const std::byte> sent, std::span<std::byte> received) override {
    whole_.exchange(member(other), sent, received);
  }
  void finish() override {}
  void end_all(const std::string& why) override { whole_.end_all(why); }

 private:
  int member(int rank) const { return members_[static_cast<size_t>(rank)]; }

  Communicator& whole_;
  std::vector<int> members_;
  int rank_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_group_communicator(Communicator& whole, std::vector<int> members) {
  return std::make_unique<GroupCommunicator>(whole, std::move(members));
}

}  // namespace qiao
