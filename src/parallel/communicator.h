// Who works together, and bytes from one to another: all that several processes know of each other. Sums and
// their order are others' (train/ranks.h, backend/collectives.h): no sum of a library is used, for none
// promises an order.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace qiao {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;  // from 0 to below size()
  virtual int size() const = 0;
  virtual std::string name(int rank) const = 0;  // "rank 2 on node7"
  // How many ranks, this one included, share this one's cores.
  virtual int sharing_cores() const = 0;
  // How many, this one included, are on this one's host, and how many of those come before it.
  virtual int sharing_host() const = 0;
  virtual int place_on_host() const = 0;

  // Between two ranks bytes arrive in the order in which they were sent, in messages of the sizes that both
  // sides name. Both wait for the other side as long as it lives: send may wait until its bytes are received.
  // Throw Error(kUnavailable), naming the rank, where it is lost or hangs. Not thread-safe.
  virtual void send(int to, std::span<const std::byte> bytes) = 0;
  virtual void receive(int from, std::span<std::byte> bytes) = 0;
  // Both at once, with the same rank, which calls it too.
  virtual void exchange(int other, std::span<const std::byte> sent, std::span<std::byte> received);

  // Returns when all ranks have called it.
  void barrier();
  // The last call of a run that ended well: waits for the others, then lets go of them.
  virtual void finish() = 0;
  // What the ranks do together cannot go on: ends this process with exit code 1 and `why` on stderr, and with
  // it all. Between threads: throws Error(kUnavailable).
  [[noreturn]] virtual void end_all(const std::string& why) = 0;

  template <typename T>
  void send_values(int to, std::span<const T> values) {
    send(to, std::as_bytes(values));
  }
  template <typename T>
  void receive_values(int from, std::span<T> values) {
    receive(from, std::as_writable_bytes(values));
  }
};

// One process alone.
std::unique_ptr<Communicator> make_lone_communicator();

// Threads of one process, for tests: communicator r is for thread r alone. A rank whose communicator is
// destroyed before finish() is lost; one that sends nothing for `patience_seconds` to who waits for it hangs.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size, double patience_seconds);

// Some of the ranks of `whole`, this one among them, by their numbers there: member i is rank i here. Of its
// host and cores it says what `whole` does, which outlives it; finish() waits for nobody.
std::unique_ptr<Communicator> make_group_communicator(Communicator& whole, std::vector<int> members);

// This process's rank where mpirun has started it.
std::optional<int> launched_rank();
// How many processes it has started; 0: there is no mpirun, or it does not say.
int launched_size();

struct MpiOptions {
  double patience_seconds = 20;  // a rank that gives no sign of life for so long hangs
  // What is said of the rest where a rank is lost.
  std::string consequence = "the run ends here; its last whole checkpoint stays";
  // SIGTERM ends the processes (the launcher sends it where it ends them); false: it is somebody else's.
  bool takes_sigterm = true;
};
// The ranks that mpirun started, watched by heartbeat.h: where one is lost or hangs, the first of the others
// says which on stderr, and the process ends with exit code 1. Once a process. Throws Error(kUnavailable)
// where Qiao was built without MPI, saying what to install.
std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options);

}  // namespace qiao
