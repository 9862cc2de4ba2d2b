// What a run is asked for: every field is a flag of `qiao train` and a key of its --config file.
#pragma once

#include <filesystem>
#include <string>

#include "train/data.h"
#include "train/lora.h"
#include "train/optimizer.h"
#include "train/policy_options.h"
#include "train/preference.h"
#include "train/sampler.h"

namespace qiao::train {

struct TrainOptions {
  std::string mode = "pretrain";  // what is taught: pretrain, finetune, dpo, grpo
  // A Hugging Face directory: configuration, weights, tokenizer. With an adapter also a GGUF file.
  std::filesystem::path init;
  std::filesystem::path out;  // RUN: metrics.jsonl, checkpoints/, model/
  bool resume = false;        // go on with the run that `out` holds
  DataOptions data;
  std::vector<std::filesystem::path> validation;  // as data.files: rows whose loss is told, not trained on
  int64_t validate_every = 100;                   // steps; and at the end
  std::filesystem::path chat_template;            // a Jinja file in place of the model's own template
  PreferenceOptions preference;
  PolicyOptions policy;  // of grpo
  int64_t steps = 0;
  int64_t batch = 8;        // sequences of a step
  int64_t micro_batch = 0;  // sequences that are computed at once; 0: all of the batch (or a rank's)
  // 1; or 4, to which the batch is dealt out and whose gradients are added pair by pair (ranks.h): always
  // with several processes, or groups of them. 0: 4 where mpirun has started them, else 1.
  int64_t virtual_ranks = 0;
  int64_t tensor_parallel = 1;  // processes that train one model together
  OptimizerSettings optimizer;
  LoraOptions lora;
  std::string schedule = "cosine";   // constant, linear, cosine, wsd
  int64_t warmup = 0;                // steps in which the learning rate grows from 0
  double least_learning_rate = 0.1;  // where the falling ones end, as a share of the rate
  double decay = 0.1;                // the last share of the steps, in which wsd falls
  double clip = 1.0;                 // largest norm of the gradient; 0: any
  int64_t checkpoint_every = 100;    // steps; 0: at the end alone
  int64_t keep_checkpoints = 2;
  // What is computed in: f32; or bf16: weights rounded to BF16 for the passes and multiplied with activations
  // rounded to it, as a BF16 file is served; or fp8: as bf16, but that the matrices of layers whose rows are
  // whole blocks of 128 are quantized from that to E4M3 for the passes, all three products with them are of
  // E4M3 (LinearBackward, kF8), and it computes as `--quantize fp8` serves a BF16 file. Masters, sums,
  // gradients and moments are F32 in all.
  std::string dtype = "f32";
  std::string recompute = "auto";  // of layers on the way back: auto, on, off (models/decoder_training.h)
  std::string device = "auto";
  int threads = 0;
  bool dry_run = false;       // state memory and time, and end
  bool profile = false;       // TrainObserver::on_profile
  bool measure_peak = false;  // TrainReport::peak_flops
  SampleOptions sample;
  std::string settings;  // what the run leaves in out/run.toml; empty: nothing
};

// Of a run's folder: its settings, by which it goes on.
inline constexpr const char* kSettingsFile = "run.toml";

// Throws Error(kInvalidInput) naming the flag, its value and what was expected.
void check_options(const TrainOptions& options);

// The learning rate of a step (from 1), and AdamW's where Muon has that one.
double learning_rate(const TrainOptions& options, int64_t step);
double adam_learning_rate(const TrainOptions& options, int64_t step);

}  // namespace qiao::train
