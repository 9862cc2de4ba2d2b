#include "cli/ranks.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>

#include "base/error.h"
#include "base/thread_pool.h"
#include "cli/model_argument.h"

namespace qiao::cli {
namespace {

constexpr int kInterruptedRun = 130;

// Of the process, as MPI is.
struct Joined {
  std::unique_ptr<Communicator> communicator;
  bool serves = false;
};

Joined& joined() {
  static Joined& all = *new Joined;  // never destroyed: who leaves says so
  return all;
}

}  // namespace

void in_all_processes(const std::function<void(std::optional<int> rank)>& body) {
  const std::optional<int> rank = launched_rank();
  try {
    body(rank);
  } catch (const Error& error) {
    if (rank.value_or(0) == 0) throw;
    std::this_thread::sleep_for(std::chrono::seconds(5));  // mpirun ends all where rank 0 has
    throw Error(error.kind(), fmt::format("rank {}: {}", *rank, error.what()));
  }
}

bool in_several_processes() { return launched_rank() && launched_size() != 1; }

Communicator* join_ranks(double patience_seconds) {
  Joined& all = joined();
  if (!all.communicator && in_several_processes()) {
    MpiOptions options;
    options.patience_seconds = patience_seconds;
    options.consequence = all.serves ? "the server ends here" : "the run ends here";
    options.takes_sigterm = !all.serves;
    all.communicator = make_mpi_communicator(options);
  }
  return all.communicator.get();
}

bool serves_behind_another() {
  joined().serves = true;
  if (launched_rank().value_or(0) == 0) return false;
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) std::signal(signal, SIG_IGN);
  return true;
}

std::filesystem::path resolve_on_ranks(const std::string& argument, bool may_pull) {
  Communicator* const ranks = joined().communicator.get();
  if (ranks == nullptr) return resolve_model(argument, may_pull);
  std::filesystem::path path;
  for (int turn = 0; turn < ranks->size(); ++turn) {
    if (turn == ranks->rank()) path = resolve_model(argument, may_pull);
    ranks->barrier();
  }
  return path;
}

int threads_on_ranks(int wished) {
  const Communicator* const ranks = joined().communicator.get();
  if (wished > 0 || ranks == nullptr || ranks->size() == 1) return wished;
  return std::max(1, usable_cpus() / ranks->sharing_cores());
}

void follow_and_end(std::shared_ptr<LanguageModel> model) {
  model->decoder().follow();
  model.reset();
  throw CLI::RuntimeError(0);
}

void leave_ranks(int code) {
  std::unique_ptr<Communicator> communicator = std::move(joined().communicator);
  if (!communicator) return;
  const bool well = code == 0 || code == kInterruptedRun;
  if (well) communicator->finish();
}

}  // namespace qiao::cli
