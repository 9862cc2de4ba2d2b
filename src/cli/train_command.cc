#include "cli/commands.h"
#include "cli/train_flags.h"
#include "cli/train_printer.h"
#include "train/trainer.h"

namespace qiao::cli {
namespace {

void pretrain(TrainFlags flags) {
  flags.options.data.shuffle = flags.shuffle == "on";
  TrainPrinter::take_interrupts();
  flags.options.measure_peak = !flags.quiet && !flags.options.dry_run;
  TrainPrinter printer(flags.options.steps, flags.log_every, flags.quiet, flags.options.dry_run);
  train::train(flags.options, printer);
}

}  // namespace

void add_train_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Train a model on text or tokens");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  qiao train pretrain --help");
  const auto flags = std::make_shared<TrainFlags>();
  CLI::App* mode =
      command->add_subcommand("pretrain", "Teach a model to go on with plain documents: every token counts");
  add_train_flags(*mode, *flags);
  mode->footer(
      "Ctrl-C ends the run after its step, with a checkpoint; a run that was killed goes on with --resume to "
      "the\n"
      "same bytes. The model in RUN/model serves at once. A DIR with a config.json and no weights begins "
      "from\n"
      "nothing: the weights are drawn by --seed.\n"
      "Examples:\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 2000 --out RUN --resume\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN --dry-run --profile\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN --sample-every 100\n"
      "      --sample-prompt \"Once upon a time\"\n"
      "  qiao plot RUN --out curves.png\n"
      "  qiao serve -m RUN/model");
  mode->callback([flags] { pretrain(*flags); });
}

}  // namespace qiao::cli
