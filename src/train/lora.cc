#include "train/lora.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "backend/philox.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/quote.h"
#include "formats/safetensors_write.h"
#include "models/lora.h"
#include "models/rotary_rows.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPeftPrefix = "base_model.model.";
constexpr std::string_view kAllLinear = "all-linear";
constexpr int64_t kMostRank = int64_t{1} << 16;

std::string_view last_name(std::string_view module) { return module.substr(module.rfind('.') + 1); }

bool is_named(std::string_view module, std::string_view target) {
  return module == target || (module.ends_with(target) && module[module.size() - target.size() - 1] == '.');
}

// torch.nn.init.kaiming_uniform_(a, a=sqrt(5)): uniform within 1 / sqrt(columns). Element by element from a
// counter, so that neither order nor machine matters.
std::vector<float> drawn(std::string_view name, uint64_t seed, int64_t rows, int64_t columns) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  std::vector<float> values(static_cast<size_t>(rows * columns));
  const double bound = 1.0 / std::sqrt(static_cast<double>(columns));
  for (size_t i = 0; i < values.size(); i += 4) {
    const std::array<uint32_t, 4> words =
        philox4x32({static_cast<uint32_t>(i / 4), static_cast<uint32_t>(i / 4 >> 32),
                    static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32)},
                   seed);
    for (size_t j = i; j < std::min(i + 4, values.size()); ++j)
      values[j] = static_cast<float>(bound * ((static_cast<double>(words[j - i]) + 0.5) * 0x1p-31 - 1.0));
  }
  return values;
}

std::vector<LoraModule> chosen(const LoraOptions& options, const ModelFiles& files,
                               const std::vector<LoraModule>& all) {
  std::set<std::string_view> wanted;
  for (const std::string& target : options.targets) {
    const size_t before = wanted.size();
    for (const LoraModule& module : all)
      if (target == kAllLinear || is_named(module.name, target)) wanted.insert(module.name);
    if (wanted.size() > before ||
        std::ranges::any_of(all, [&](const LoraModule& module) { return is_named(module.name, target); }))
      continue;
    const bool of_experts = std::ranges::any_of(files.tensors(), [&](const TensorInfo& tensor) {
      return tensor.name.find("expert") != std::string::npos && tensor.name.find(target) != std::string::npos;
    });
    std::set<std::string_view> names = {kAllLinear};
    for (const LoraModule& module : all) names.insert(last_name(module.name));
    throw_error(of_experts ? ErrorKind::kUnsupported : ErrorKind::kInvalidInput,
                "--lora-targets: {} has no module {}{}; there are {}", files.path().string(),
                quote_text(target),
                of_experts ? " but in experts, whose adapters are not supported: they stay as they are" : "",
                fmt::join(names, ", "));
  }
  std::vector<LoraModule> modules;
  for (const LoraModule& module : all)
    if (wanted.contains(module.name)) modules.push_back(module);
  return modules;
}

// Of a new adapter, as PEFT writes it.
Json config_json(const LoraOptions& options, const std::vector<LoraModule>& modules) {
  std::set<std::string> names;
  for (const std::string& target : options.targets)
    if (target != kAllLinear) names.insert(target);
  if (std::ranges::find(options.targets, kAllLinear) != options.targets.end())
    for (const LoraModule& module : modules) names.insert(std::string(last_name(module.name)));
  Json targets = names;
  if (modules.front().name.starts_with("model.language_model.")) {
    // A vision tower beside the language model has modules of the same names: an expression leaves it alone.
    std::string any = fmt::format("{}", fmt::join(names, "|"));
    for (size_t dot = any.find('.'); dot != std::string::npos; dot = any.find('.', dot + 2))
      any.insert(dot, 1, '\\');
    targets = fmt::format("(model\\.language_model\\.)(.*\\.)?({})", any);
  }
  return {{"peft_type", "LORA"},
          {"task_type", "CAUSAL_LM"},
          {"inference_mode", true},
          {"r", options.rank},
          {"lora_alpha", options.alpha != 0 ? options.alpha : static_cast<double>(options.rank)},
          {"lora_dropout", options.dropout},
          {"use_rslora", options.rank_stabilized},
          {"target_modules", targets},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"init_lora_weights", true},
          {"modules_to_save", nullptr}};
}

void check_lora_options(const LoraOptions& options) {
  if (!(options.dropout >= 0 && options.dropout < 1)) {
    throw_error(ErrorKind::kInvalidInput, "--lora-dropout is {}; a share from 0 to below 1 was expected",
                options.dropout);
  }
  if (options.rank < 0 || options.rank > kMostRank) {
    throw_error(ErrorKind::kInvalidInput, "--lora-rank is {}; 1 to {} was expected", options.rank, kMostRank);
  }
  if (!std::isfinite(options.alpha) || options.alpha < 0)
    throw_error(ErrorKind::kInvalidInput, "--lora-alpha is {}; a number above 0 was expected", options.alpha);
  if (!options.init.empty() && (options.alpha != 0 || options.rank_stabilized)) {
    throw_error(ErrorKind::kInvalidInput,
                "--lora-init: {} has a scale of its own; neither --lora-alpha nor --lora-rslora goes with it",
                options.init.string());
  }
}

std::vector<LoraValues> new_values(const LoraOptions& options, uint64_t seed,
                                   const std::vector<LoraModule>& modules) {
  std::vector<LoraValues> values;
  for (const LoraModule& module : modules) {
    values.push_back({module.name, options.rank, module.rows, module.columns,
                      drawn(module.name, seed, options.rank, module.columns),
                      std::vector<float>(static_cast<size_t>(module.rows * options.rank))});
  }
  return values;
}

// Of an adapter of PEFT, which `options` must not contradict.
std::vector<LoraValues> read_values(const LoraOptions& options, const LoraFiles& files,
                                    const std::vector<LoraModule>& all, std::vector<LoraModule>& modules) {
  std::vector<LoraValues> values;
  for (const LoraPair& pair : files.pairs()) {
    const LoraModule* found = find_lora_module(all, pair.module, false);
    if (found == nullptr) {
      throw_error(ErrorKind::kInvalidInput,
                  "{}: module {}: the base has no such module that takes an adapter", files.source(),
                  quote_text(pair.module));
    }
    const int64_t rank = pair.a->shape[0];
    if (options.rank != 0 && rank != options.rank) {
      throw_error(ErrorKind::kInvalidInput, "--lora-rank is {}, and {} has a rank of {} at {}", options.rank,
                  files.source(), rank, quote_text(pair.module));
    }
    modules.push_back(*found);
    values.push_back(
        {found->name, rank, found->rows, found->columns, files.floats(*pair.a), files.floats(*pair.b)});
    if (pair.a->shape[1] != found->columns || pair.b->shape[0] != found->rows) {
      throw_error(ErrorKind::kInvalidInput, "{}: module {} is [{}, {}]; [{}, {}] was expected",
                  files.source(), quote_text(pair.module), pair.b->shape[0], pair.a->shape[1], found->rows,
                  found->columns);
    }
  }
  return values;
}

// By the flags that say it, or that name the adapter that does.
Json fixed_of(const Json& config) {
  Json fixed = Json::object();
  const std::pair<const char*, const char*> keys[] = {{"--lora-rank", "r"},
                                                      {"--lora-alpha", "lora_alpha"},
                                                      {"--lora-rslora", "use_rslora"},
                                                      {"--lora-targets", "target_modules"},
                                                      {"--lora-init's rank_pattern", "rank_pattern"},
                                                      {"--lora-init's alpha_pattern", "alpha_pattern"}};
  for (const auto& [flag, key] : keys) fixed[flag] = config.value(key, Json());
  return fixed;
}

Json read_config(const fs::path& directory) {
  const fs::path path = directory / "adapter_config.json";
  return parse_json(read_regular_file(path, size_t{4} << 20), path.string());
}

}  // namespace

LoraAdapter::LoraAdapter(const LoraOptions& options, uint64_t seed, const fs::path& base,
                         const ModelFiles& files, Decoder& decoder, Parameters& parameters)
    : head_dim_(decoder.config().head_dim) {
  check_lora_options(options);
  const std::vector<LoraModule> all = lora_modules(files, read_decoder_config(files));
  std::vector<LoraValues> values;
  Json config;
  if (options.init.empty()) {
    modules_ = chosen(options, files, all);
    values = new_values(options, seed, modules_);
    config = config_json(options, modules_);
  } else {
    const auto from = LoraFiles::open(options.init);
    if (from->gguf()) {
      throw_error(ErrorKind::kUnsupported, "--lora-init: {}: a directory of PEFT was expected",
                  options.init.string());
    }
    values = read_values(options, *from, all, modules_);
    config = read_config(fs::is_directory(options.init) ? options.init : options.init.parent_path());
  }
  if (!options.init.empty()) config["lora_dropout"] = options.dropout;
  fixed_ = fixed_of(config);
  config["base_model_name_or_path"] = fs::absolute(base).lexically_normal().string();
  config_ = dump_json(config, 2) + "\n";

  std::map<std::string_view, size_t> numbers;  // of modules, by name
  for (size_t i = 0; i < modules_.size(); ++i) numbers[modules_[i].name] = i;
  const auto adapter = LoraFiles::of_values(config_, values, "adapter");
  decoder.add_adapter(*adapter, [&](const LaidOutLora& pair) {
    const size_t number = numbers.at(pair.pair->module);
    const LoraModule& module = modules_[number];
    LoraValues& of = values[number];
    const std::string name = fmt::format("{}{}", kPeftPrefix, module.name);
    parameters.add_matrix(name + ".lora_A.weight", {{{0, of.rank}}, pair.columns, of.rank, of.columns},
                          *pair.a, pair.first_rank, 1.0f);
    parameters.add_matrix(name + ".lora_B.weight", {pair.rows, {0, of.rank}, of.rows, of.rank}, *pair.b, 0,
                          pair.scale);
    if (module.paired_rows > 0) paired_rows_[name + ".lora_B.weight"] = module.paired_rows;
    begin_[name + ".lora_A.weight"] = std::move(of.a);
    begin_[name + ".lora_B.weight"] =
        reordered_rotary_rows(of.b, of.rank, module.paired_rows, head_dim_, true);
  });
}

void LoraAdapter::prepare(Parameters& parameters) {
  parameters.prepare([&](const Parameters::Named& named, std::vector<float>& floats) {
    floats = std::move(begin_.at(named.name));
  });
  begin_.clear();
}

std::vector<float> LoraAdapter::as_peft(const Parameters::Named& tensor, std::vector<float> values) const {
  const auto found = paired_rows_.find(tensor.name);
  if (found == paired_rows_.end()) return values;
  return reordered_rotary_rows(values, tensor.shape[1], found->second, head_dim_, false);
}

void LoraAdapter::write(const fs::path& folder, const Parameters& parameters, const MasterOf& master) const {
  fs::create_directories(folder);
  write_file_atomically(folder / "adapter_config.json", config_);
  std::vector<TensorToWrite> tensors;
  std::vector<float> values;
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    tensors.push_back({tensor.name, DType::kF32, tensor.shape, [&, i] {
                         const std::span<const float> floats = master(i);
                         values = as_peft(tensor, {floats.begin(), floats.end()});
                         return std::as_bytes(std::span(values));
                       }});
  }
  write_safetensors(folder / "adapter_model.safetensors", tensors, {{"format", "pt"}});
}

}  // namespace qiao::train
