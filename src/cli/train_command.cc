#include <optional>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/grpo_flags.h"
#include "cli/model_argument.h"
#include "cli/ranks.h"
#include "cli/run_config.h"
#include "cli/train_flags.h"
#include "cli/train_printer.h"
#include "parallel/communicator.h"
#include "train/ranks.h"
#include "train/trainer.h"

namespace qiao::cli {
namespace {

// Which run goes on, and by which settings: flags, then --config, then the run's own.
void settle(CLI::App& command, TrainFlags& flags) {
  train::TrainOptions& options = flags.options;
  if (!flags.config.empty()) flags.config_keys = apply_config(command, flags.config);
  if (flags.resume->count() == 0) return;
  options.resume = true;
  const std::filesystem::path run =
      flags.run_to_resume.empty() ? options.out : std::filesystem::path(flags.run_to_resume);
  if (run.empty()) throw_error(ErrorKind::kInvalidInput, "--resume: the folder of a run was expected");
  if (!options.out.empty() && options.out != run) {
    throw_error(ErrorKind::kInvalidInput, "--resume is {} and --out {}: one folder was expected",
                run.string(), options.out.string());
  }
  options.out = run;
  if (!std::filesystem::is_directory(run))
    throw_error(ErrorKind::kNotFound, "{}: there is no run to go on with", run.string());
  if (std::filesystem::exists(run / train::kSettingsFile)) apply_config(command, run / train::kSettingsFile);
}

// An option that the --config file gave is told with the file's name.
void check_settings(const TrainFlags& flags) {
  try {
    train::check_options(flags.options);
  } catch (const Error& error) {
    const std::string_view what = error.what();
    for (const std::string& key : flags.config_keys)
      if (what.starts_with("--" + key + " ")) throw Error(error.kind(), flags.config + ": " + error.what());
    throw;
  }
}

void run_training(CLI::App& command, TrainFlags& flags) {
  in_all_processes([&](std::optional<int> rank) {
    settle(command, flags);
    flags.options.data.shuffle = flags.shuffle == "on";
    std::filesystem::path& init = flags.options.init;
    if (!init.empty()) init = resolve_model(init.string(), !rank);  // several would pull at once
    flags.options.settings = write_config(command);
    if (rank && flags.options.virtual_ranks == 0 && flags.options.tensor_parallel == 1)
      flags.options.virtual_ranks = train::kVirtualRanks;
    check_settings(flags);
    TrainPrinter::take_interrupts();
    flags.options.measure_peak = !flags.quiet && !flags.options.dry_run;
    TrainPrinter printer(flags.options.steps, flags.log_every, flags.quiet, flags.options.dry_run);
    if (!rank) return train::train(flags.options, printer);
    const auto communicator = make_mpi_communicator({.patience_seconds = flags.rank_timeout});
    train::train(flags.options, printer, *communicator);
    communicator->finish();
  });
}

CLI::App* add_mode(CLI::App& command, const std::shared_ptr<TrainFlags>& flags, const char* name,
                   const char* what) {
  flags->options.mode = name;
  CLI::App* mode = command.add_subcommand(name, what);
  add_train_flags(*mode, *flags);
  mode->callback([flags, mode] { run_training(*mode, *flags); });
  return mode;
}

void add_pretrain(CLI::App& command) {
  const auto flags = std::make_shared<TrainFlags>();
  CLI::App* mode =
      add_mode(command, flags, "pretrain", "Teach a model to go on with plain documents: every token counts");
  mode->footer(
      "Ctrl-C ends the run after its step, with a checkpoint; a run that was killed goes on with --resume "
      "to\n"
      "the same bytes. The model in RUN/model serves at once. A DIR with a config.json and no weights "
      "begins\n"
      "from nothing: the weights are drawn by --seed.\n"
      "Examples:\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  qiao train pretrain --resume RUN --steps 2000\n"
      "  qiao train pretrain --config run.toml\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN --dry-run --profile\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN --sample-every 100\n"
      "      --sample-prompt \"Once upon a time\"\n"
      "  qiao plot RUN --out curves.png\n"
      "  qiao serve -m RUN/model");
}

void add_finetune(CLI::App& command) {
  const auto flags = std::make_shared<TrainFlags>();
  CLI::App* mode = add_mode(command, flags, "finetune",
                            "Teach a model to answer in conversations: what the assistant writes counts");
  add_chat_flags(*mode, *flags);
  mode->get_option("--data")->description(
      "JSON Lines: conversations as below, or pretrain's rows; texts (*.txt), or folders of them");
  mode->footer(
      "A row is {\"messages\": […], \"tools\": […]} as in OpenAI's API, ShareGPT's {\"conversations\": "
      "[…]},\n"
      "Alpaca's {\"instruction\", \"input\", \"output\"}, or {\"prompt\", \"completion\"}.\n"
      "Examples:\n"
      "  qiao train finetune --init DIR --data chats.jsonl --steps 200 --lr 1e-5 --out RUN\n"
      "  qiao train finetune --init smollm2 --data chats.jsonl --steps 200 --lr 2e-4 --out RUN --lora-rank "
      "16\n"
      "  qiao chat -m RUN/model");
}

void add_dpo(CLI::App& command) {
  const auto flags = std::make_shared<TrainFlags>();
  CLI::App* mode =
      add_mode(command, flags, "dpo",
               "Teach a model which of two answers is preferred, measured against itself before");
  add_chat_flags(*mode, *flags);
  add_preference_flags(*mode, *flags);
  mode->get_option("--data")->description("JSON Lines: rows of preferences as below, or folders of them");
  mode->footer(
      "A row is {\"prompt\", \"chosen\", \"rejected\"}: texts, or lists of messages. --batch counts pairs.\n"
      "Examples:\n"
      "  qiao train dpo --init DIR --data pairs.jsonl --steps 100 --lr 1e-6 --beta 0.1 --out RUN");
}

void add_grpo(CLI::App& command) {
  const auto flags = std::make_shared<TrainFlags>();
  CLI::App* mode =
      add_mode(command, flags, "grpo",
               "Teach a model by rewards: completions are drawn in groups and the better ones made likelier");
  add_grpo_flags(*mode, *flags);
}

}  // namespace

void add_train_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Train a model on text or tokens");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  qiao train finetune --init DIR --data chats.jsonl --steps 200 --out RUN\n"
      "  qiao train grpo --init DIR --data prompts.jsonl --reward-python reward.py --lr 1e-6 --steps 200 "
      "--out RUN\n"
      "  mpirun -np 4 qiao train pretrain --init DIR --data texts.jsonl --steps 1000 --out RUN\n"
      "  mpirun -np 4 qiao train pretrain --tensor-parallel 2 --init DIR --data texts.jsonl --steps 1000 "
      "--out "
      "RUN\n"
      "  qiao train finetune --help");
  add_pretrain(*command);
  add_finetune(*command);
  add_dpo(*command);
  add_grpo(*command);
}

}  // namespace qiao::cli
