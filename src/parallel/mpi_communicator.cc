#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>

#include <sched.h>

#include "base/error.h"
#include "parallel/communicator.h"
#include "parallel/heartbeat.h"

#ifdef QIAO_MPI
#include <mpi.h>
#endif

namespace qiao {

#ifndef QIAO_MPI

std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions&) {
  throw_error(
      ErrorKind::kUnavailable,
      "this qiao was built without MPI and cannot train in several processes: install libopenmpi-dev and "
      "openmpi-bin, configure anew and build");
}

#else

namespace {

constexpr int kTag = 1;

// Who a rank is: known to all.
struct Host {
  std::array<char, 256> name{};
  cpu_set_t cores{};
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(const MpiOptions& options) {
    int given = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &given);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    meet();
    heartbeat_ = std::make_unique<Heartbeat>(*this, options.patience_seconds, [](const std::string& text) {
      const std::string line = "error: " + text + "\n";
      [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
    });
  }
  // Without finish() the process is about to end with an error: the launcher ends the others.
  ~MpiCommunicator() override {
    if (heartbeat_ == nullptr) return;
    heartbeat_->give_up();
    [[maybe_unused]] Heartbeat* const beats_until_the_end = heartbeat_.release();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name(int rank) const override {
    return fmt::format("rank {} on {}", rank, hosts_[static_cast<size_t>(rank)].name.data());
  }
  int sharing_cores() const override {
    const Host& own = hosts_[static_cast<size_t>(rank_)];
    return static_cast<int>(std::ranges::count_if(hosts_, [&](const Host& host) {
      return host.name == own.name && CPU_EQUAL(&host.cores, &own.cores);
    }));
  }
  void send(int to, std::span<const std::byte> bytes) override {
    MPI_Request request;
    check(MPI_Isend(bytes.data(), count_of(bytes.size()), MPI_BYTE, to, kTag, MPI_COMM_WORLD, &request), to);
    wait(request, to);
  }
  void receive(int from, std::span<std::byte> bytes) override {
    MPI_Request request;
    check(MPI_Irecv(bytes.data(), count_of(bytes.size()), MPI_BYTE, from, kTag, MPI_COMM_WORLD, &request),
          from);
    wait(request, from);
  }
  void finish() override {
    barrier();
    heartbeat_.reset();
    MPI_Finalize();
  }

 private:
  static int count_of(size_t bytes) {
    QIAO_ASSERT(bytes <= INT32_MAX);
    return static_cast<int>(bytes);
  }
  void check(int result, int other) const {
    if (result == MPI_SUCCESS) return;
    std::array<char, MPI_MAX_ERROR_STRING> text{};
    int length = 0;
    MPI_Error_string(result, text.data(), &length);
    throw_error(ErrorKind::kUnavailable, "{} cannot be reached: {}", name(other), text.data());
  }
  // Asks again and again, ever more seldom: ranks may share cores with those they wait for. Whether the other
  // side lives is the heartbeat's to know.
  void wait(MPI_Request& request, int other) const {
    int done = 0;
    for (int asked = 0;; ++asked) {
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), other);
      if (done != 0) return;
      if (asked < 200) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(asked < 2000 ? 20 : 200));
      }
    }
  }
  // Every rank's host to rank 0, and all of them back.
  void meet() {
    hosts_.resize(static_cast<size_t>(size_));
    Host& own = hosts_[static_cast<size_t>(rank_)];
    ::gethostname(own.name.data(), own.name.size() - 1);
    ::sched_getaffinity(0, sizeof(own.cores), &own.cores);
    if (rank_ == 0) {
      for (int other = 1; other < size_; ++other)
        receive_values(other, std::span(&hosts_[static_cast<size_t>(other)], 1));
      for (int other = 1; other < size_; ++other) send_values(other, std::span<const Host>(hosts_));
    } else {
      send_values(0, std::span<const Host>(&own, 1));
      receive_values(0, std::span(hosts_));
    }
  }

  int rank_ = 0, size_ = 1;
  std::vector<Host> hosts_;
  std::unique_ptr<Heartbeat> heartbeat_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options) {
  return std::make_unique<MpiCommunicator>(options);
}

#endif

}  // namespace qiao
