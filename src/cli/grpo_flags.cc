#include "cli/grpo_flags.h"

namespace qiao::cli {
namespace {

void add_sampling_flags(CLI::App& command, train::PolicyOptions& o) {
  command.add_option("--group", o.group, "Completions drawn of each prompt [8]")->type_name("N");
  command
      .add_option(
          "--max-tokens", o.max_tokens,
          "Most tokens of a completion, what tools answered with them; prompts have the rest of --seq [256]")
      ->type_name("N");
  command.add_option("--temperature", o.temperature, "Of drawing, and of every log-probability [1]")
      ->type_name("X");
  command.add_option("--slots", o.slots, "Completions drawn at once, as far as there are so many [64]")
      ->type_name("N");
}

void add_reward_flags(CLI::App& command, train::PolicyOptions& o) {
  command
      .add_option(
          "--reward", o.reward.command,
          "Command that rewards: it reads a line of JSON for each completion and writes one, a number or "
          R"({"reward": x, "other figures": y})")
      ->type_name("COMMAND");
  command
      .add_option("--reward-python", o.reward.python,
                  "Function that rewards, given the same as a dictionary; NAME is reward by default")
      ->type_name("FILE.py[:NAME]");
  command
      .add_option("--reward-timeout", o.reward.limit_seconds,
                  "Seconds that a reward, or the tools' answer, may take [60]")
      ->type_name("X");
  command.add_option("--tools", o.tools, "Tools that prompts show: a file of OpenAI's list")
      ->type_name("FILE");
  command
      .add_option(
          "--tool-command", o.tool_command,
          R"(Command that runs tools: a line {"calls": [{"name", "arguments"}], …} in, a list of results out)")
      ->type_name("COMMAND");
  command
      .add_option("--max-turns", o.max_turns, "Most answers of a completion, calls of tools between them [8]")
      ->type_name("N");
}

void add_loss_flags(CLI::App& command, train::PolicyOptions& o) {
  command
      .add_option(
          "--loss", o.loss,
          "grpo; dapo: a mean over all tokens, a higher upper clip, groups of equal rewards drawn anew; "
          "gspo: a ratio for each sequence [grpo]")
      ->check(CLI::IsMember({"grpo", "dapo", "gspo"}))
      ->type_name("NAME");
  command.add_option("--clip-low", o.clip_low, "The ratio is cut below 1 less this [0.2; gspo 3e-4]")
      ->type_name("X");
  command
      .add_option("--clip-high", o.clip_high, "The ratio is cut above 1 and this [0.2; dapo 0.28; gspo 4e-4]")
      ->type_name("X");
  command
      .add_option("--kl", o.beta,
                  "Weight of the distance (k3) to the model of --init, which is kept beside; 0: none [0]")
      ->type_name("X");
  command
      .add_option("--advantage-std", o.advantage_std,
                  "Divide advantages by the group's standard deviation: on, or off as in Dr. GRPO [on]")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("on|off");
  command.add_option("--updates", o.updates, "Optimizer steps of a rollout, each on its own part of it [1]")
      ->type_name("N");
  command
      .add_option("--resample", o.resample,
                  "dapo: most further rounds of prompts in place of groups of equal rewards [3]")
      ->type_name("N");
  command
      .add_option("--overlong-buffer", o.overlong_buffer,
                  "Last tokens before --max-tokens in which the reward falls, by 1 at its end; 0: none [0]")
      ->type_name("N");
}

}  // namespace

void add_grpo_flags(CLI::App& mode, TrainFlags& flags) {
  mode.get_option("--data")->description(
      R"(JSON Lines: rows of {"prompt": a text or messages}, {"messages": […]} or {"tokens": [ids]}, with what the )"
      "reward needs");
  mode.get_option("--batch")->description("Prompts of a rollout [8]");
  mode.get_option("--seq")->description("Most tokens of a prompt with its completion [512]");
  mode.get_option("--micro-batch")
      ->description("Sequences' worth of tokens computed at once; 0: all of an update's [0]");
  add_sampling_flags(mode, flags.options.policy);
  add_reward_flags(mode, flags.options.policy);
  add_loss_flags(mode, flags.options.policy);
  mode.footer(
      "A reward is asked {\"prompt\", \"completion\", \"messages\", \"finished\", \"row\", \"step\", "
      "\"index\"}: row "
      "is the row of --data.\n"
      "Before the first update of a rollout its log-probabilities must be training's, bit for bit.\n"
      "Examples:\n"
      "  qiao train grpo --init DIR --data prompts.jsonl --reward-python reward.py --batch 8 --group 8\n"
      "      --seq 256 --max-tokens 128 --lr 1e-6 --schedule constant --weight-decay 0 --steps 200 --out "
      "RUN\n"
      "  qiao train grpo --init DIR --data prompts.jsonl --reward './check --strict' --loss dapo --lr 1e-6\n"
      "      --steps 200 --out RUN\n"
      "  qiao train grpo --init DIR --data prompts.jsonl --reward-python reward.py --tools tools.json\n"
      "      --tool-command 'python3 run_tools.py' --lr 1e-6 --steps 200 --out RUN\n"
      "  mpirun -np 2 qiao train grpo --tensor-parallel 2 --init DIR --data prompts.jsonl --reward ./check\n"
      "      --lr 1e-6 --steps 200 --out RUN");
}

}  // namespace qiao::cli
