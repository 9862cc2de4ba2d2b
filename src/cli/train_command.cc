#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <thread>

#include "base/error.h"
#include "base/units.h"
#include "cli/commands.h"
#include "cli/train_flags.h"
#include "parallel/communicator.h"
#include "train/ranks.h"
#include "train/trainer.h"

namespace qiao::cli {
namespace {

volatile std::sig_atomic_t interrupted = 0;

class TrainPrinter final : public train::TrainObserver {
 public:
  TrainPrinter(int64_t steps, bool quiet) : steps_(steps), quiet_(quiet) {}
  void on_start(const train::TrainReport& report) override {
    if (!quiet_)
      fmt::print(stderr, "{:.1f} million parameters; {} of memory\n",
                 static_cast<double>(report.parameters) * 1e-6, format_bytes(report.memory_bytes));
  }
  void on_step(const train::StepRecord& record) override {
    if (quiet_) return;
    fmt::print(stderr, "step {}/{}  loss {:.4f}  gradient {:.3f}  lr {:.2e}  {:.0f} tokens/s\n", record.step,
               steps_, record.loss, record.gradient_norm, record.learning_rate, record.tokens_per_second);
  }
  void on_warning(const std::string& text) override { fmt::print(stderr, "warning: {}\n", text); }
  bool should_stop() override { return interrupted != 0; }

 private:
  int64_t steps_;
  bool quiet_;
};

// As mpirun has started them: rank 0 tells what goes wrong in all of them alike, another what is its own
// alone.
void in_all_processes(TrainFlags& flags, const std::function<void(Communicator&)>& body) {
  if (!launched_by_mpi()) return body(*make_lone_communicator());
  if (flags.options.virtual_ranks == 0) flags.options.virtual_ranks = train::kVirtualRanks;
  const auto communicator = make_mpi_communicator({.patience_seconds = flags.rank_timeout});
  try {
    body(*communicator);
  } catch (const Error& error) {
    if (communicator->rank() == 0) throw;
    std::this_thread::sleep_for(std::chrono::seconds(1));
    throw Error(error.kind(), fmt::format("{}: {}", communicator->name(communicator->rank()), error.what()));
  }
  communicator->finish();
}

void pretrain(TrainFlags flags) {
  flags.options.data.shuffle = flags.shuffle == "on";
  std::signal(SIGINT, [](int) { interrupted = 1; });
  TrainPrinter printer(flags.options.steps, flags.quiet);
  in_all_processes(flags,
                   [&](Communicator& communicator) { train::train(flags.options, printer, communicator); });
}

}  // namespace

void add_train_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Train a model on text or tokens");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  mpirun -np 4 qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  qiao train pretrain --help");
  const auto flags = std::make_shared<TrainFlags>();
  CLI::App* mode =
      command->add_subcommand("pretrain", "Teach a model to go on with plain documents: every token counts");
  add_train_flags(*mode, *flags);
  mode->footer(
      "Ctrl-C ends the run after its step, with a checkpoint. The model in RUN/model serves at once.\n"
      "Examples:\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 2000 --out RUN --resume\n"
      "  qiao serve -m RUN/model");
  mode->callback([flags] { pretrain(*flags); });
}

}  // namespace qiao::cli
