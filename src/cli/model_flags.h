// Flags that several commands share: which model and machine, how tokens are drawn. Names are llama.cpp's
// where they mean the same.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "infer/embedding_model.h"
#include "infer/engine.h"
#include "infer/language_model.h"
#include "infer/sampling.h"

namespace qiao::cli {

struct ModelFlags {
  std::string model;
  std::string device = "auto";
  int threads = 0;
  bool fast = false;
  int64_t context = 0;
  int64_t batch = 512;
  int64_t lookup = 0;
  std::string draft;
  int64_t draft_max = 8;
  std::string compute = "auto";
  std::string quantize;  // "fp8", or empty
  std::string kv_type = "f16", key_type, value_type;
  std::string chat_template_file;
  double rank_timeout = 20;
  bool no_pull = false;
  bool quiet = false;
  std::vector<AdapterSource> adapters;
  // Of a command whose requests all go through the one adapter there may be; empty: none.
  std::string adapter() const { return adapters.empty() ? std::string() : adapters.front().name; }
};

void add_model_flags(CLI::App& command, ModelFlags& flags);
// --rank-timeout.
void add_rank_timeout_flag(CLI::App& command, double& seconds);
// As CLI::Range, of which NaN is no part.
CLI::Validator real_range(double least, double most);
// --lora NAME=PATH, repeatable: requests choose by name.
void add_named_adapters_flag(CLI::App& command, ModelFlags& flags);
// --lora PATH: every request goes through it.
void add_adapter_flag(CLI::App& command, ModelFlags& flags);

// Finds (pulling it if need be) and loads the model, with a progress line on a terminal's stderr. Where
// mpirun has started several processes, each loads its part, and from those behind the first this does not
// come back: they follow it to its end (ranks.h).
std::shared_ptr<LanguageModel> load_model(const ModelFlags& flags);
// The same for an encoder at `path`.
std::shared_ptr<EmbeddingModel> load_embedding_model(const ModelFlags& flags,
                                                     const std::filesystem::path& path);
// Of the cache. Throws Error(kInvalidInput) where keys and values were asked for in different types.
DType kv_dtype(const ModelFlags& flags);
const std::string& kv_type(const ModelFlags& flags);  // as it was asked for: "f16", "fp8"
// Loads the draft model too, where one is asked for.
EngineOptions engine_options(const ModelFlags& flags, int64_t slots);

struct SamplingFlags {
  std::optional<float> temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
  std::optional<int32_t> top_k;
  std::optional<uint64_t> seed;
  std::vector<std::string> logit_bias;  // "ID+BIAS" or "ID-BIAS"
  int64_t max_tokens = -1;
  std::vector<std::string> stop;
  bool ignore_eos = false;
};

void add_sampling_flags(CLI::App& command, SamplingFlags& flags);
// The model's recommendation with the flags over it; a seed is drawn where none is given. Validated.
SamplingOptions sampling_options(const SamplingFlags& flags, const LanguageModel& model);

}  // namespace qiao::cli
