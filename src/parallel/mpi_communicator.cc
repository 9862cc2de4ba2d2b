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
      "this qiao was built without MPI and cannot run in several processes: install libopenmpi-dev and "
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
    // One thread at a time, but not always the same: steps are an engine's thread's.
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &given);
    if (given < MPI_THREAD_SERIALIZED)
      throw_error(ErrorKind::kUnavailable,
                  "this MPI allows calls of one thread alone (MPI_THREAD_SERIALIZED)");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    if (const int launched = launched_size(); launched > 0 && launched != size_)
      throw_error(ErrorKind::kUnavailable,
                  "{} processes were started, and MPI finds {}: they are to be started by the mpirun of the "
                  "MPI that Qiao is built with (Debian: openmpi-bin)",
                  launched, size_);
    meet();
    heartbeat_ = std::make_unique<Heartbeat>(*this, options, tell);
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
  int sharing_host() const override {
    return static_cast<int>(std::ranges::count_if(hosts_, [&](const Host& host) { return is_here(host); }));
  }
  int place_on_host() const override {
    return static_cast<int>(std::count_if(hosts_.begin(), hosts_.begin() + rank_,
                                          [&](const Host& host) { return is_here(host); }));
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
  void exchange(int other, std::span<const std::byte> sent, std::span<std::byte> received) override {
    MPI_Request coming, going;
    check(
        MPI_Irecv(received.data(), count_of(received.size()), MPI_BYTE, other, kTag, MPI_COMM_WORLD, &coming),
        other);
    check(MPI_Isend(sent.data(), count_of(sent.size()), MPI_BYTE, other, kTag, MPI_COMM_WORLD, &going),
          other);
    wait(coming, other);
    wait(going, other);
  }
  void finish() override {
    barrier();
    heartbeat_.reset();
    MPI_Finalize();
  }
  void end_all(const std::string& why) override {
    tell(fmt::format("{}: {}", name(rank_), why));
    heartbeat_->give_up();
    ::_exit(1);
  }

 private:
  static void tell(const std::string& text) {
    const std::string line = "error: " + text + "\n";
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  }
  bool is_here(const Host& host) const { return host.name == hosts_[static_cast<size_t>(rank_)].name; }
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
  // Asks again and again, ever more seldom: within a step an answer comes at once, in which a sleep would
  // cost more than the work; ranks may share cores with those they wait for; and a server may have nothing to
  // do for hours. Whether the other side lives is the heartbeat's to know.
  void wait(MPI_Request& request, int other) const {
    using std::chrono::microseconds;
    constexpr microseconds kSoon(2000), kLater(200000);
    int done = 0;
    const auto began = std::chrono::steady_clock::now();
    while (true) {
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), other);
      if (done != 0) return;
      const auto waited = std::chrono::steady_clock::now() - began;
      if (waited < kSoon) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(microseconds(waited < kLater ? 50 : 500));
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
