#include "cli/model_flags.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "base/error.h"
#include "base/units.h"
#include "cli/model_argument.h"
#include "cli/ranks.h"
#include "models/weights.h"

namespace qiao::cli {
namespace {

DecoderOptions::Policy policy(const std::string& name) {
  using Policy = DecoderOptions::Policy;
  if (name == "f32") return Policy::kF32;
  if (name == "bf16") return Policy::kBF16;
  if (name == "q8") return Policy::kQ8;
  return Policy::kAuto;
}

std::pair<TokenId, float> parse_bias(const std::string& text) {
  TokenId id = 0;
  const char* const end = text.data() + text.size();
  const auto [after, problem] = std::from_chars(text.data(), end, id);
  float bias = 0.0f;
  const char* const number = after != end && *after == '+' ? after + 1 : after;  // from_chars takes no '+'
  if (problem == std::errc() && after != end && (*after == '+' || *after == '-')) {
    const auto [rest, trouble] = std::from_chars(number, end, bias);
    if (trouble == std::errc() && rest == end) return {id, bias};
  }
  throw_error(ErrorKind::kInvalidInput, "--logit-bias {}: expected TOKEN+BIAS or TOKEN-BIAS, as in 15043-100",
              text);
}

}  // namespace

CLI::Validator real_range(double least, double most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    double value = 0;
    if (CLI::detail::lexical_cast(text, value) && value >= least && value <= most) return "";
    return fmt::format("Value {} not in range {} to {}", text, least, most);
  };
  return {check, fmt::format("[{} - {}]", least, most)};
}

void add_rank_timeout_flag(CLI::App& command, double& seconds) {
  command
      .add_option("--rank-timeout", seconds,
                  "With mpirun: seconds without a sign of life after which a process hangs [20]")
      ->check(real_range(0.1, 86400.0))
      ->type_name("X");
}

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command.add_option("-m,--model", flags.model, kModelHelp)->type_name("MODEL");
  command.add_option("-t,--threads", flags.threads, "Threads; 0: as many as this process may use")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");
  command.add_option("-c,--ctx-size", flags.context, "Context in tokens; 0: the model's, at most 8192")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->type_name("N");
  command.add_option("-b,--batch-size", flags.batch, "Tokens that one step computes at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->capture_default_str()
      ->type_name("N");
  command
      .add_option(
          "--lookup", flags.lookup,
          "Draft up to N tokens a step by looking the last ones up in the text so far; 0: off. Answers "
          "stay the same bytes")
      ->check(CLI::Range(int64_t{0}, int64_t{31}))
      ->capture_default_str()
      ->type_name("N");
  command
      .add_option("--draft,--model-draft", flags.draft,
                  "Smaller model with the same tokenizer that drafts tokens. Answers stay the "
                  "same bytes")
      ->type_name("MODEL");
  command.add_option("--draft-max", flags.draft_max, "Tokens that the draft model guesses in a step at most")
      ->check(CLI::Range(int64_t{1}, int64_t{31}))
      ->capture_default_str()
      ->type_name("N");
  command.add_option("--device", flags.device, "Chip to run on: auto, cpu, cuda, cuda:N, reference")
      ->capture_default_str()
      ->type_name("CHIP");
  command
      .add_option(
          "--compute", flags.compute,
          "Numerics of matrix products: auto (by the file's dtype: FP8 weights with activations of FP8), "
          "f32 (exact weights, float32 activations), "
          "bf16 (attention over a cache of 16 bits too), q8")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "q8"}))
      ->capture_default_str()
      ->type_name("POLICY");
  command
      .add_option(
          "--quantize", flags.quantize,
          "Quantize the layers' matrices of a model of floats as it is loaded: fp8 (E4M3, a scale for "
          "each 128 x 128; activations too, as they come); half of bf16's memory")
      ->check(CLI::IsMember({"fp8"}))
      ->type_name("TYPE");
  command.add_flag(
      "--fast", flags.fast,
      "Let a GPU add up in the order that is quickest for each step: what else is in it may then "
      "change an answer's bits, and with them a token");
  const auto types = CLI::IsMember({"f16", "bf16", "f32", "q8_0", "fp8"});
  command
      .add_option(
          "--kv-type", flags.kv_type,
          "Type of cached keys and values: f16, bf16, f32, or half of f16's memory: q8_0 (eight bits, a "
          "scale for each 32) or fp8 (E4M3, a scale for each token and head)")
      ->check(types)
      ->capture_default_str()
      ->type_name("TYPE");
  command
      .add_option("--cache-type-k", flags.key_type, "llama.cpp's name (-ctk too): as -ctv, the type of both")
      ->excludes("--kv-type")
      ->check(types)
      ->type_name("TYPE");
  command
      .add_option("--cache-type-v", flags.value_type,
                  "llama.cpp's name (-ctv too): as -ctk, the type of both")
      ->excludes("--kv-type")
      ->check(types)
      ->type_name("TYPE");
  command
      .add_option("--chat-template-file", flags.chat_template_file,
                  "Jinja file in place of the model's template")
      ->type_name("FILE");
  add_rank_timeout_flag(command, flags.rank_timeout);
  command.add_flag("--no-pull", flags.no_pull, "Fail rather than fetch a model that is not here");
  command.add_flag("-q,--quiet", flags.quiet, "No progress and no statistics on stderr");
}

void add_named_adapters_flag(CLI::App& command, ModelFlags& flags) {
  const auto add = [&flags](const std::string& text) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
      throw CLI::ValidationError("--lora", "expected NAME=PATH, got " + text);
    flags.adapters.push_back({text.substr(0, equals), text.substr(equals + 1)});
  };
  command
      .add_option_function<std::vector<std::string>>(
          "--lora",
          [add](const std::vector<std::string>& texts) { std::for_each(texts.begin(), texts.end(), add); },
          "LoRA adapter to serve beside the model under a name of its own (a PEFT directory or a GGUF file); "
          "may "
          "be repeated")
      ->type_name("NAME=PATH");
}

void add_adapter_flag(CLI::App& command, ModelFlags& flags) {
  command
      .add_option_function<std::string>(
          "--lora",
          [&flags](const std::string& path) {
            flags.adapters = {{"lora", path}};
          },
          "LoRA adapter to use with the model: a PEFT directory or a GGUF file")
      ->type_name("PATH");
}

namespace {

template <typename Model>
std::shared_ptr<Model> load_at(const ModelFlags& flags, const std::filesystem::path& path,
                               Communicator* ranks = nullptr) {
  LanguageModelOptions options;
  options.device = flags.device;
  options.threads = threads_on_ranks(flags.threads);
  options.fast = flags.fast;
  options.decoder.ranks = ranks;
  if (ranks != nullptr) options.device_number = ranks->place_on_host();
  options.chat_template_file = flags.chat_template_file;
  options.decoder.compute = policy(flags.compute);
  options.decoder.quantize_f8 = flags.quantize == "fp8";
  options.decoder.context = flags.context;
  options.adapters = flags.adapters;
  const bool follows = ranks != nullptr && ranks->rank() > 0;
  const bool show = !flags.quiet && !follows && ::isatty(STDERR_FILENO) != 0;
  int shown = -1;
  if (show) {
    options.decoder.progress = [&](uint64_t done, uint64_t total) {
      const int percent = total == 0 ? 100 : static_cast<int>(done * 100 / total);
      if (percent == shown) return;
      shown = percent;
      std::fprintf(stderr, "\rLoading %s: %d%%", path.filename().c_str(), percent);
    };
  }
  std::shared_ptr<Model> model = Model::load(path, options);
  if (show) std::fprintf(stderr, "\r\033[K");
  return model;
}

bool has_biased_keys(const LanguageModel& model) {
  return model.decoder().weights().layers.front().attention.qkv.bias.tensor.present();
}

// FP8 that takes more memory than its file: a scale of it is for fewer than 128 columns, or rows are no whole
// blocks.
void tell_widened(const ModelFiles& files) {
  int64_t count = 0;
  uint64_t more = 0;
  for (const TensorInfo& tensor : files.tensors()) {
    if (!files.is_fp8(tensor) || tensor.dtype == DType::kF8_128) continue;
    ++count;
    more += tensor.bytes - static_cast<uint64_t>(tensor.elements());
  }
  if (count == 0) return;
  const std::string text = fmt::format(
      "note: {} FP8 matrices have no scale for each 128 columns (MXFP8's are for 32): they are computed from "
      "floats, which take {} more than in the file\n",
      count, format_bytes(more));
  std::fputs(text.c_str(), stderr);
}

}  // namespace

std::shared_ptr<LanguageModel> load_model(const ModelFlags& flags) {
  std::shared_ptr<LanguageModel> model;
  in_all_processes([&](std::optional<int> rank) {
    Communicator* const ranks = join_ranks(flags.rank_timeout);
    model = load_at<LanguageModel>(flags, resolve_on_ranks(flags.model, !flags.no_pull), ranks);
    if (rank.value_or(0) > 0) follow_and_end(std::move(model));
  });
  if (!flags.quiet && flags.quantize.empty()) tell_widened(*model->files());
  if (kv_type(flags) == "fp8" && has_biased_keys(*model)) {
    std::fputs(
        "warning: --kv-type fp8: this model's keys have biases; where some of those are very large, as "
        "Qwen2.5's are, four significant bits lose too much. q8_0 takes hardly more memory\n",
        stderr);
  }
  return model;
}

std::shared_ptr<EmbeddingModel> load_embedding_model(const ModelFlags& flags,
                                                     const std::filesystem::path& path) {
  for (const auto& [given, flag] : {std::pair{!flags.quantize.empty(), "--quantize"},
                                    {!flags.draft.empty(), "--draft"},
                                    {flags.lookup > 0, "--lookup"},
                                    {!flags.adapters.empty(), "--lora"}}) {
    if (given)
      throw_error(ErrorKind::kUnsupported, "{}: an embedding model takes no {}; leave it out", path.string(),
                  flag);
  }
  in_all_processes([&](std::optional<int>) {
    const Communicator* const ranks = join_ranks(flags.rank_timeout);
    if (ranks == nullptr || ranks->size() == 1) return;
    throw_error(ErrorKind::kUnsupported, "{}: an embedding model runs in one process, and {} were started",
                path.string(), ranks->size());
  });
  return load_at<EmbeddingModel>(flags, path);
}

const std::string& kv_type(const ModelFlags& flags) {
  return flags.key_type.empty() ? flags.kv_type : flags.key_type;
}

DType kv_dtype(const ModelFlags& flags) {
  if (flags.key_type != flags.value_type) {
    const auto shown = [](const std::string& type) { return type.empty() ? "(not given)" : type; };
    throw_error(
        ErrorKind::kInvalidInput,
        "--cache-type-k {} and --cache-type-v {}: keys and values are kept in one type; give both the same, "
        "or --kv-type",
        shown(flags.key_type), shown(flags.value_type));
  }
  const std::string& name = kv_type(flags);
  return name == "fp8" ? DType::kF8_E4M3 : *dtype_named(name);
}

EngineOptions engine_options(const ModelFlags& flags, int64_t slots) {
  EngineOptions options;
  options.context = flags.context;
  options.slots = slots;
  options.batch_tokens = flags.batch;
  options.lookup = flags.lookup;
  options.draft_max = flags.draft_max;
  if (!flags.draft.empty()) {
    ModelFlags draft = flags;
    draft.chat_template_file.clear();
    draft.adapters.clear();  // they are the other model's
    const std::filesystem::path path = resolve_model(flags.draft, !flags.no_pull);
    try {
      options.draft = load_at<LanguageModel>(draft, path);
    } catch (const Error& error) {
      if (draft.quantize.empty() || error.kind() != ErrorKind::kUnsupported) throw;
      draft.quantize.clear();  // which the other model can be, and this one need not
      options.draft = load_at<LanguageModel>(draft, path);
    }
  }
  options.kv_dtype = kv_dtype(flags);
  return options;
}

void add_sampling_flags(CLI::App& command, SamplingFlags& flags) {
  constexpr const char* kGroup = "Sampling";
  command
      .add_option("-n,--predict,--n-predict", flags.max_tokens,
                  "Most tokens to generate; -1: until the model ends or the context is full")
      ->check(CLI::Range(int64_t{-1}, int64_t{1} << 24))
      ->capture_default_str()
      ->type_name("N");
  command
      .add_option("--temp,--temperature", flags.temperature,
                  "Temperature; 0: always the likeliest token (0.8, or as the model recommends)")
      ->type_name("X")
      ->group(kGroup);
  command.add_option("--top-k", flags.top_k, "Keep the K likeliest tokens; 0: off (40)")
      ->type_name("K")
      ->group(kGroup);
  command
      .add_option("--top-p", flags.top_p, "Keep the likeliest tokens that together reach P; 1: off (0.95)")
      ->type_name("P")
      ->group(kGroup);
  command
      .add_option("--min-p", flags.min_p,
                  "Keep tokens at least P times as likely as the likeliest; 0: off (0.05)")
      ->type_name("P")
      ->group(kGroup);
  command
      .add_option("--repeat-penalty", flags.repetition_penalty,
                  "Divide the logits of tokens seen before; 1: off")
      ->type_name("X")
      ->group(kGroup);
  command
      .add_option("--frequency-penalty", flags.frequency_penalty,
                  "Lower a token's logit each time it was generated; 0: off")
      ->type_name("X")
      ->group(kGroup);
  command
      .add_option("--presence-penalty", flags.presence_penalty,
                  "Lower the logit of every token generated before; 0: off")
      ->type_name("X")
      ->group(kGroup);
  command
      .add_option("--logit-bias", flags.logit_bias,
                  "Add to a token's logit: TOKEN+BIAS or TOKEN-BIAS; may be repeated")
      ->type_name("T±B")
      ->group(kGroup);
  command.add_option("-s,--seed", flags.seed, "Seed of the draws; without it every run differs")
      ->type_name("N")
      ->group(kGroup);
  command.add_option("--stop", flags.stop, "End before this text; may be repeated")
      ->type_name("TEXT")
      ->group(kGroup);
  command.add_flag("--ignore-eos", flags.ignore_eos, "Go on past the model's end token")->group(kGroup);
}

SamplingOptions sampling_options(const SamplingFlags& flags, const LanguageModel& model) {
  SamplingOptions options = model.recommended_sampling();
  const auto take = [](const auto& flag, auto& value) {
    if (flag) value = *flag;
  };
  take(flags.temperature, options.temperature);
  take(flags.top_k, options.top_k);
  take(flags.top_p, options.top_p);
  take(flags.min_p, options.min_p);
  take(flags.repetition_penalty, options.repetition_penalty);
  take(flags.frequency_penalty, options.frequency_penalty);
  take(flags.presence_penalty, options.presence_penalty);
  for (const std::string& bias : flags.logit_bias) options.logit_bias.push_back(parse_bias(bias));
  options.seed = flags.seed ? *flags.seed : random_seed();
  options.validate(model.decoder().config().vocabulary_size);
  return options;
}

}  // namespace qiao::cli
