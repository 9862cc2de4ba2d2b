#include "train/options.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "train/ranks.h"

namespace qiao::train {

void check_options(const TrainOptions& o) {
  const auto need = [](bool right, std::string_view option, auto value, std::string_view expected) {
    if (!right) throw_error(ErrorKind::kInvalidInput, "--{} is {}; {} was expected", option, value, expected);
  };
  const auto give = [](bool given, std::string_view option, std::string_view expected) {
    if (!given) throw_error(ErrorKind::kInvalidInput, "--{} is missing: {} was expected", option, expected);
  };
  give(!o.init.empty(), "init", "the Hugging Face directory to begin from");
  give(!o.data.files.empty(), "data", "a file of rows, a text or a folder");
  give(!o.out.empty(), "out", "a folder for the run");
  need(o.mode == "pretrain" || o.mode == "finetune" || o.mode == "dpo" || o.mode == "grpo", "mode", o.mode,
       "pretrain, finetune, dpo or grpo");
  need(o.data.seed <= INT64_MAX, "seed", o.data.seed, "a number below 2^63");
  need(o.steps > 0, "steps", o.steps, "a number above 0");
  need(o.preference.beta > 0 && std::isfinite(o.preference.beta), "beta", o.preference.beta,
       "a number above 0");
  need(o.preference.label_smoothing >= 0 && o.preference.label_smoothing < 0.5, "label-smoothing",
       o.preference.label_smoothing, "a number from 0 to below 0.5");
  need(o.preference.loss == "sigmoid" || o.preference.loss == "ipo", "loss", o.preference.loss,
       "sigmoid or ipo");
  need(o.validation.empty() || o.mode == "pretrain" || o.mode == "finetune", "validation",
       o.validation.empty() ? "" : o.validation.front().string(), "it with pretrain and finetune alone");
  need(o.validate_every > 0, "validate-every", o.validate_every, "a number above 0");
  need(o.batch > 0, "batch", o.batch, "a number above 0");
  need(o.micro_batch >= 0, "micro-batch", o.micro_batch, "0 or more");
  need(o.virtual_ranks == 0 || o.virtual_ranks == 1 || o.virtual_ranks == kVirtualRanks, "virtual-ranks",
       o.virtual_ranks, "1 or 4");
  need(o.batch % std::max<int64_t>(o.virtual_ranks, 1) == 0, "batch", o.batch,
       "a multiple of 4, which are dealt out to four virtual ranks,");
  need(o.tensor_parallel > 0 && o.tensor_parallel <= 1024, "tensor-parallel", o.tensor_parallel,
       "a number from 1 to 1024");
  need(o.data.most_bad_rows >= 0, "max-bad-rows", o.data.most_bad_rows, "0 or more");
  need(o.data.sequence > 1, "seq", o.data.sequence, "2 or more");
  need(o.batch <= INT32_MAX / o.data.sequence, "batch", o.batch,
       fmt::format("up to {}, which are 2^31 tokens with --seq {},", INT32_MAX / o.data.sequence,
                   o.data.sequence));
  need(o.threads >= 0 && o.threads <= 4096, "threads", o.threads, "0 to 4096");
  check_optimizer(o.optimizer);
  need(o.clip >= 0, "clip", o.clip, "0 or more");
  need(o.warmup >= 0, "warmup", o.warmup, "0 or more");
  const std::array<std::string_view, 4> schedules = {"constant", "linear", "cosine", "wsd"};
  need(std::ranges::find(schedules, o.schedule) != schedules.end(), "schedule", o.schedule,
       "constant, linear, cosine or wsd");
  need(o.decay >= 0 && o.decay <= 1, "decay", o.decay, "a share from 0 to 1");
  need(o.least_learning_rate >= 0 && o.least_learning_rate <= 1, "min-lr", o.least_learning_rate,
       "a share from 0 to 1");
  need(o.checkpoint_every >= 0, "checkpoint-every", o.checkpoint_every, "0 or more");
  need(o.keep_checkpoints > 0, "keep-checkpoints", o.keep_checkpoints, "a number above 0");
  need(o.sample.every >= 0, "sample-every", o.sample.every, "0 or more");
  need(o.sample.tokens > 0, "sample-tokens", o.sample.tokens, "a number above 0");
  need(o.dtype == "f32" || o.dtype == "bf16" || o.dtype == "fp8", "dtype", o.dtype, "f32, bf16 or fp8");
  need(o.recompute == "auto" || o.recompute == "on" || o.recompute == "off", "recompute", o.recompute,
       "auto, on or off");
  need(o.lora.dropout == 0 || o.lora.on(), "lora-dropout", o.lora.dropout,
       "0 where there is no adapter (--lora-rank, --lora-init)");
  need(o.lora.dropout == 0 || o.mode != "grpo", "lora-dropout", o.lora.dropout,
       "0 with grpo, whose log-probabilities are the rollout's,");
  if (o.mode == "grpo")
    check_policy_options(o.policy, o.batch, o.batch / std::max<int64_t>(o.virtual_ranks, 1), o.steps,
                         o.data.sequence);
}

namespace {

double scheduled(const TrainOptions& options, int64_t step, double rate) {
  if (step <= options.warmup) return rate * static_cast<double>(step) / static_cast<double>(options.warmup);
  if (options.schedule == "constant") return rate;
  const double least = options.least_learning_rate;
  int64_t begin = options.warmup;   // of falling
  if (options.schedule == "wsd") {  // warm up, stay, decay (Hu et al. 2024, MiniCPM)
    const auto decaying = std::llround(options.decay * static_cast<double>(options.steps));
    begin = std::max<int64_t>(options.warmup, options.steps - decaying);
    if (step <= begin) return rate;
  }
  const double share =
      static_cast<double>(step - begin) / static_cast<double>(std::max<int64_t>(options.steps - begin, 1));
  const double falling =
      options.schedule == "cosine" ? (1 + std::cos(std::numbers::pi * share)) / 2 : 1 - share;
  return rate * (least + (1 - least) * falling);
}

}  // namespace

double learning_rate(const TrainOptions& options, int64_t step) {
  return scheduled(options, step, options.optimizer.learning_rate);
}

double adam_learning_rate(const TrainOptions& options, int64_t step) {
  const OptimizerSettings& optimizer = options.optimizer;
  return scheduled(options, step, optimizer.adam_learning_rate.value_or(optimizer.learning_rate));
}

}  // namespace qiao::train
