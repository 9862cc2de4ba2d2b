#include <csignal>
#include <cstdio>

#include "base/error.h"
#include "base/units.h"
#include "cli/commands.h"
#include "cli/grpo_flags.h"
#include "cli/train_flags.h"
#include "train/trainer.h"

namespace qiao::cli {
namespace {

volatile std::sig_atomic_t interrupted = 0;

// What reinforcement learning is watched by; empty for other modes.
std::string policy_figures(const Json& more) {
  if (!more.contains("reward")) return "";
  std::string text = fmt::format("  reward {:.3f}  length {:.0f}  clipped {:.1f}%  rollout kl {:.2g}",
                                 more["reward"].get<double>(), more["completion_tokens"].get<double>(),
                                 100 * more["clipped"].get<double>(), more["rollout_kl"].get<double>());
  if (more.contains("rollout_differing"))
    text += fmt::format(", {} of {} tokens differ", more["rollout_differing"].get<int64_t>(),
                        more["rollout_compared"].get<int64_t>());
  return text;
}

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
    fmt::print(stderr, "step {}/{}  loss {:.4f}  gradient {:.3f}  lr {:.2e}  {:.0f} tokens/s{}\n",
               record.step, steps_, record.loss, record.gradient_norm, record.learning_rate,
               record.tokens_per_second, policy_figures(record.more));
  }
  void on_warning(const std::string& text) override { fmt::print(stderr, "warning: {}\n", text); }
  bool should_stop() override { return interrupted != 0; }

 private:
  int64_t steps_;
  bool quiet_;
};

void run_training(TrainFlags flags) {
  flags.options.data.shuffle = flags.shuffle == "on";
  std::signal(SIGINT, [](int) { interrupted = 1; });
  TrainPrinter printer(flags.options.steps, flags.quiet);
  train::train(flags.options, printer);
}

}  // namespace

void add_train_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Train a model on text or tokens");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  qiao train grpo --init DIR --data prompts.jsonl --reward-python reward.py --lr 1e-6 --steps 200 "
      "--out RUN\n"
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
  mode->callback([flags] { run_training(*flags); });
  add_grpo_mode(*command, run_training);
}

}  // namespace qiao::cli
