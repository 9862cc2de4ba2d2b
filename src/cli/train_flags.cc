#include "cli/train_flags.h"

#include "cli/model_flags.h"

namespace qiao::cli {
namespace {

void add_lora_flags(CLI::App& command, train::LoraOptions& lora) {
  command
      .add_option("--lora-rank", lora.rank,
                  "Train a LoRA adapter of this rank, and leave the model as it is; 0: all of the model [0]")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  command
      .add_option("--lora-alpha", lora.alpha,
                  "What the adapter adds is scaled by this over its rank; 0: the rank itself [0]")
      ->check(CLI::NonNegativeNumber)
      ->type_name("X");
  command
      .add_option(
          "--lora-targets", lora.targets,
          "Modules that get an adapter, by the ends of their names: q_proj,v_proj; all-linear: all but "
          "embedding and output [all-linear]")
      ->delimiter(',')
      ->type_name("NAMES");
  command.add_flag("--lora-rslora", lora.rank_stabilized, "Scale by alpha over the root of the rank");
  command
      .add_option("--lora-dropout", lora.dropout,
                  "Share of what enters the adapter's matrices that is dropped in training [0]")
      ->type_name("X");
  command
      .add_option("--lora-init", lora.init, "Adapter of PEFT to go on from, with its rank, alpha and targets")
      ->type_name("DIR");
}

}  // namespace

void add_chat_flags(CLI::App& command, TrainFlags& flags) {
  command
      .add_option("--chat-template", flags.options.chat_template,
                  "Jinja file that conversations are written by, in place of the model's own template")
      ->type_name("FILE");
}

void add_preference_flags(CLI::App& command, TrainFlags& flags) {
  train::PreferenceOptions& o = flags.options.preference;
  command.add_option("--beta", o.beta, "How dear it is to leave the reference, the initial model [0.1]")
      ->type_name("X");
  command
      .add_option("--label-smoothing", o.label_smoothing,
                  "Share of pairs that may be the wrong way around [0]")
      ->type_name("X");
  command.add_option("--loss", o.loss, "sigmoid, or ipo [sigmoid]")
      ->check(CLI::IsMember({"sigmoid", "ipo"}))
      ->type_name("NAME");
}

void add_train_flags(CLI::App& command, TrainFlags& flags) {
  train::TrainOptions& o = flags.options;
  command
      .add_option(
          "--init", o.init,
          "Hugging Face directory to begin from: configuration, tokenizer, and weights or none: then they "
          "are drawn at random; with --lora-rank also a GGUF file")
      ->type_name("DIR");
  command
      .add_option("--max-bad-rows", o.data.most_bad_rows,
                  "Bad rows are skipped; more than this end the run [100]")
      ->type_name("N");
  command
      .add_option(
          "--data", o.data.files,
          R"(JSON Lines (rows of {"text": "…"} or {"tokens": [ids]}), texts (*.txt), or folders of them)")
      ->type_name("FILE");
  command
      .add_option("--validation", o.validation,
                  "Files as --data's that are not trained on: their mean loss is told and kept (pretrain, "
                  "finetune)")
      ->type_name("FILE");
  command.add_option("--validate-every", o.validate_every, "Steps between those; and at the end [100]")
      ->type_name("N");
  command.add_option("--out", o.out, "Folder of the run: metrics.jsonl, checkpoints, model")
      ->type_name("RUN");
  command
      .add_option("--config", flags.config,
                  "TOML file of settings: every flag's long name is a key; flags here win")
      ->type_name("FILE");
  flags.resume = command
                     .add_option("--resume", flags.run_to_resume,
                                 "Go on from the last whole checkpoint of RUN (or --out), by its settings "
                                 "where none are given here")
                     ->expected(0, 1)
                     ->type_name("RUN");
  command.add_option("--steps", o.steps, "Steps in all")->type_name("N");
  command.add_option("--batch", o.batch, "Sequences of a step [8]")->type_name("N");
  command
      .add_option("--micro-batch", o.micro_batch,
                  "Sequences computed at once; 0: the whole batch. The same step "
                  "in less memory [0]")
      ->type_name("N");
  command
      .add_option("--seq", o.data.sequence,
                  "Tokens of a sequence, which documents fill one after the other [512]")
      ->type_name("N");
  command.add_option("--lr", o.optimizer.learning_rate, "Learning rate [1e-3]")->type_name("X");
  command
      .add_option(
          "--schedule", o.schedule,
          "Learning rate over the steps: constant, linear, cosine or wsd (stays, falls at the end) [cosine]")
      ->check(CLI::IsMember({"constant", "linear", "cosine", "wsd"}))
      ->type_name("NAME");
  command
      .add_option("--min-lr", o.least_learning_rate,
                  "Where the rate ends that falls, as a share of --lr [0.1]")
      ->type_name("X");
  command.add_option("--decay", o.decay, "Last share of the steps in which wsd falls, linearly [0.1]")
      ->type_name("X");
  command.add_option("--warmup", o.warmup, "Steps in which the rate grows to --lr [0]")->type_name("N");
  command
      .add_option("--optimizer", o.optimizer.kind,
                  "adamw, or muon for the layers' matrices with AdamW for the rest [adamw]")
      ->check(CLI::IsMember({"adamw", "muon"}))
      ->type_name("NAME");
  command.add_option("--weight-decay", o.optimizer.weight_decay, "Decay of every tensor [0.1]")
      ->type_name("X");
  command.add_option("--beta1", o.optimizer.beta1, "AdamW's first decay rate [0.9]")->type_name("X");
  command.add_option("--beta2", o.optimizer.beta2, "AdamW's second decay rate [0.95]")->type_name("X");
  command
      .add_option("--adam-states", o.optimizer.adam_states,
                  "What AdamW's moments are kept in: f32, bf16, or 8bit, codes in blocks of 256; small "
                  "tensors stay in F32 [f32]")
      ->check(CLI::IsMember({"f32", "bf16", "8bit"}))
      ->type_name("NAME");
  command
      .add_option("--adam-lr", o.optimizer.adam_learning_rate,
                  "Learning rate of what Muon does not train: embeddings, head, norms, biases [--lr]")
      ->type_name("X");
  command.add_option("--muon-momentum", o.optimizer.muon_momentum, "Muon's decay rate [0.95]")
      ->type_name("X");
  command
      .add_option("--muon-lr-adjust", o.optimizer.muon_lr_adjust,
                  "What Muon's rate is times for N x K: original, sqrt(max(1, N/K)), or match_rms_adamw, "
                  "0.2 sqrt(max(N, K)), with which --lr is AdamW's [original]")
      ->check(CLI::IsMember({"original", "match_rms_adamw"}))
      ->type_name("NAME");
  command.add_option("--clip", o.clip, "Largest norm of the gradient; 0: any [1]")->type_name("X");
  command
      .add_option(
          "--dtype", o.dtype,
          "What is computed in: f32; bf16, as BF16 models are served; or fp8, the layers' products in E4M3 "
          "and the rest as bf16; weights and sums stay F32 [f32]")
      ->check(CLI::IsMember({"f32", "bf16", "fp8"}))
      ->type_name("NAME");
  command
      .add_option("--recompute", o.recompute,
                  "Compute layers again on the way back, for less memory: on, off; auto: where keeping "
                  "what they make would take a quarter of the free memory [auto]")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->type_name("on|off|auto");
  command.add_option("--seed", o.data.seed, "Seed of the rows' order and of weights that are drawn [0]")
      ->type_name("N");
  command.add_option("--shuffle", flags.shuffle, "A new order of the rows each epoch: on or off [on]")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("on|off");
  command
      .add_option("--checkpoint-every", o.checkpoint_every,
                  "Steps between checkpoints; 0: at the end alone [100]")
      ->type_name("N");
  command.add_option("--keep-checkpoints", o.keep_checkpoints, "Checkpoints that stay [2]")->type_name("N");
  add_lora_flags(command, o.lora);
  command.add_option("--device", o.device, "Chip to train on: auto, cpu, cuda, cuda:N, reference [auto]")
      ->type_name("CHIP");
  command.add_option("-t,--threads", o.threads, "Threads; 0: as many as this process may use")
      ->type_name("N");
  command
      .add_option("--virtual-ranks", o.virtual_ranks,
                  "4: the batch is dealt out as to 4 processes, for the bytes that those would leave; 0: 4 "
                  "with mpirun (but where all processes train one model), else 1 [0]")
      ->check(CLI::IsMember({0, 1, 4}))
      ->type_name("N");
  command
      .add_option("--tensor-parallel", o.tensor_parallel,
                  "With mpirun: so many processes train one model together, each a part of every layer; the "
                  "number of all of them is a multiple [1]")
      ->type_name("N");
  add_rank_timeout_flag(command, flags.rank_timeout);
  command
      .add_option("--sample-every", o.sample.every,
                  "Steps between samples of what the model writes; 0: none [0]")
      ->type_name("N");
  command
      .add_option("--sample-prompt", o.sample.prompt, "What samples go on from; empty: a text's beginning")
      ->type_name("TEXT");
  command.add_option("--sample-tokens", o.sample.tokens, "Tokens of a sample [64]")->type_name("N");
  command.add_flag("--dry-run", o.dry_run,
                   "Say how much memory it takes, how many tokens a second a timed micro-batch makes and how "
                   "long that is, and end");
  command.add_flag("--profile", o.profile, "At the end, print what a step costs by op");
  command.add_option("--log-every", flags.log_every, "Steps between lines where stderr is no terminal [10]")
      ->type_name("N");
  command.add_flag("-q,--quiet", flags.quiet, "No line a step");
}

}  // namespace qiao::cli
