#include "parallel/communicator.h"

#include <cstdlib>
#include <initializer_list>

#include "base/error.h"

namespace qiao {
namespace {

class LoneCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string name(int) const override { return "rank 0"; }
  int sharing_cores() const override { return 1; }
  int sharing_host() const override { return 1; }
  int place_on_host() const override { return 0; }
  void send(int, std::span<const std::byte>) override { QIAO_ASSERT(false); }
  void receive(int, std::span<std::byte>) override { QIAO_ASSERT(false); }
  void finish() override {}
  void end_all(const std::string& why) override { throw_error(ErrorKind::kUnavailable, "{}", why); }
};

// By the variables of Open MPI's launcher and others'.
std::optional<int> launcher_says(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* const value = std::getenv(name);
    if (value != nullptr) return std::atoi(value);
  }
  return std::nullopt;
}

}  // namespace

// Of two that only sent, each could wait for the other.
void Communicator::exchange(int other, std::span<const std::byte> sent, std::span<std::byte> received) {
  if (rank() < other) send(other, sent);
  receive(other, received);
  if (rank() > other) send(other, sent);
}

void Communicator::barrier() {
  std::byte none{};
  if (rank() == 0) {
    for (int other = 1; other < size(); ++other) receive(other, {&none, 1});
    for (int other = 1; other < size(); ++other) send(other, {&none, 1});
  } else {
    send(0, {&none, 1});
    receive(0, {&none, 1});
  }
}

std::unique_ptr<Communicator> make_lone_communicator() { return std::make_unique<LoneCommunicator>(); }

std::optional<int> launched_rank() { return launcher_says({"OMPI_COMM_WORLD_RANK", "PMI_RANK"}); }
int launched_size() { return launcher_says({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}).value_or(0); }

}  // namespace qiao
