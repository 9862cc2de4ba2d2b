// PEFT's adapter_config.json (src/peft/tuners/lora/config.py of huggingface/peft says what its keys mean).
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/json.h"
#include "base/quote.h"
#include "models/lora_files.h"
#include "text/regex.h"

namespace qiao {
namespace {

constexpr int64_t kMaxLoraRank = int64_t{1} << 16;
constexpr double kMaxLoraAlpha = 1e9;
constexpr size_t kMaxLoraPatterns = 4096;

// Say where an adapter comes from or how it was trained.
constexpr std::array<std::string_view, 14> kLoraNotes = {"auto_mapping",    "base_model_name_or_path",
                                                         "inference_mode",  "lora_dropout",
                                                         "megatron_core",   "peft_version",
                                                         "revision",        "task_type",
                                                         "exclude_modules", "ensure_weight_tying",
                                                         "parent_library",  "qalora_group_size",
                                                         "eva_config",      "lora_ga_config"};
// What forward passes of Linear modules do not look at: PEFT sets it to false for them.
constexpr std::string_view kFanInFanOut = "fan_in_fan_out";
constexpr std::array<std::string_view, 11> kLoraKeys = {
    "peft_type",      "r",    "lora_alpha",          "rank_pattern",   "alpha_pattern",    "use_rslora",
    "target_modules", "bias", "layers_to_transform", "layers_pattern", "init_lora_weights"};

[[noreturn]] void refuse_key(const LoraConfig& config, std::string_view key, const Json& value,
                             std::string_view expected) {
  throw_error(ErrorKind::kInvalidInput, "{}: {} is {}; {} was expected", config.source, key,
              printable(dump_json(value)), expected);
}

// What an adapter says with null, false, "" or nothing in it, it does not say.
bool says_nothing(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_structured() && value.empty()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty());
}

const Json* find_said(const Json& json, std::string_view key) {
  const auto found = json.find(std::string(key));
  return found == json.end() || found->is_null() ? nullptr : &*found;
}

int64_t lora_rank(const LoraConfig& config, std::string_view key, const Json& value) {
  const bool whole = value.is_number_integer();
  const int64_t rank = whole && !(value.is_number_unsigned() && value.get<uint64_t>() > kMaxLoraRank)
                           ? value.get<int64_t>()
                           : 0;
  if (rank < 1 || rank > kMaxLoraRank)
    refuse_key(config, key, value, fmt::format("an integer from 1 to {}", kMaxLoraRank));
  return rank;
}

double lora_alpha(const LoraConfig& config, std::string_view key, const Json& value) {
  const double alpha = value.is_number() ? value.get<double>() : NAN;
  if (!(std::abs(alpha) <= kMaxLoraAlpha))
    refuse_key(config, key, value, fmt::format("a number up to {:.0f}", kMaxLoraAlpha));
  return alpha;
}

template <typename Value, typename Read>
std::vector<LoraConfig::Pattern<Value>> lora_patterns(const LoraConfig& config, const Json& json,
                                                      std::string_view key, Read read) {
  std::vector<LoraConfig::Pattern<Value>> list;
  const Json* object = find_said(json, key);
  if (object == nullptr) return list;
  if (!object->is_object() || object->size() > kMaxLoraPatterns)
    refuse_key(config, key, *object, fmt::format("an object of at most {} modules", kMaxLoraPatterns));
  for (const auto& [pattern, value] : object->items()) {
    const std::string name = fmt::format("{}: {}", key, quote_text(pattern));
    list.push_back({std::make_shared<tokenization::Regex>(fmt::format("\\A(?:.*\\.)?(?:{})\\z", pattern),
                                                          fmt::format("{}: {}", config.source, name)),
                    read(config, name, value)});
  }
  return list;
}

void read_lora_targets(const Json& json, LoraConfig& config) {
  if (const Json* targets = find_said(json, "target_modules"); targets != nullptr && !targets->is_string()) {
    if (!targets->is_array()) refuse_key(config, "target_modules", *targets, "a list of names, or a text");
    for (const Json& name : *targets) {
      if (!name.is_string()) refuse_key(config, "target_modules", name, "a module's name");
      config.target_modules.push_back(name.get<std::string>());
    }
  }
  const Json* layers = find_said(json, "layers_to_transform");
  if (layers == nullptr) return;
  const Json list = layers->is_array() ? *layers : Json::array({*layers});
  for (const Json& layer : list) {
    if (!layer.is_number_unsigned() || layer.get<uint64_t>() > INT32_MAX)
      refuse_key(config, "layers_to_transform", layer, "a layer's index");
    config.layers_to_transform.push_back(layer.get<int64_t>());
  }
}

// These begin from other weights than the base's own, which PEFT makes anew at each loading.
void check_lora_initialisation(const Json& json, const LoraConfig& config) {
  const Json* value = find_said(json, "init_lora_weights");
  if (value == nullptr || !value->is_string()) return;
  const std::string& kind = value->get_ref<const std::string&>();
  if (kind == "gaussian" || kind == "eva" || kind == "orthogonal") return;
  throw_error(ErrorKind::kUnsupported,
              "{}: init_lora_weights is {}: such an adapter changes the base's weights too; convert it to a "
              "plain one (PEFT: save_pretrained with path_initial_model_for_weight_conversion)",
              config.source, quote_text(kind));
}

void refuse_other_keys(const Json& json, const LoraConfig& config) {
  for (const auto& [key, value] : json.items()) {
    const auto is_in = [&key = key](const auto& list) {
      return std::find(list.begin(), list.end(), key) != list.end();
    };
    if (says_nothing(value) || is_in(kLoraNotes) || is_in(kLoraKeys) || key == kFanInFanOut) continue;
    throw_error(ErrorKind::kUnsupported, "{}: {} is {}: not supported", config.source, printable(key),
                printable(dump_json(value)));
  }
}

template <typename Value>
Value value_of_module(const std::vector<LoraConfig::Pattern<Value>>& patterns, std::string_view module,
                      Value otherwise) {
  std::vector<tokenization::Match> matches;
  for (const LoraConfig::Pattern<Value>& pattern : patterns) {
    pattern.modules->find_all(module, matches);
    if (!matches.empty()) return pattern.value;
  }
  return otherwise;
}

// The index that stands behind the first "layers", "blocks" or the like: a number between dots.
int64_t lora_layer_of(std::string_view module) {
  for (size_t dot = module.find('.'); dot != std::string_view::npos; dot = module.find('.', dot + 1)) {
    int64_t layer = -1;
    const char* const end = module.data() + module.size();
    const auto [rest, error] = std::from_chars(module.data() + dot + 1, end, layer);
    if (error == std::errc() && rest != end && *rest == '.' && layer >= 0) return layer;
  }
  return -1;
}

}  // namespace

LoraConfig parse_lora_config(std::string_view text, std::string_view source) {
  LoraConfig config;
  config.source = source;
  const Json json = parse_json(text, source, {.max_bytes = size_t{4} << 20, .max_depth = 32});
  if (!json.is_object()) throw_error(ErrorKind::kInvalidInput, "{}: a JSON object was expected", source);
  const Json* kind = find_said(json, "peft_type");
  if (kind == nullptr || *kind != "LORA") {
    throw_error(ErrorKind::kUnsupported, "{}: peft_type is {}; \"LORA\" was expected", source,
                kind == nullptr ? "missing" : printable(dump_json(*kind)));
  }
  const Json* rank = find_said(json, "r");
  const Json* alpha = find_said(json, "lora_alpha");
  if (rank == nullptr || alpha == nullptr) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} is missing", source, rank == nullptr ? "r" : "lora_alpha");
  }
  config.rank = lora_rank(config, "r", *rank);
  config.alpha = lora_alpha(config, "lora_alpha", *alpha);
  config.rank_pattern = lora_patterns<int64_t>(config, json, "rank_pattern", lora_rank);
  config.alpha_pattern = lora_patterns<double>(config, json, "alpha_pattern", lora_alpha);
  if (const Json* flag = find_said(json, "use_rslora")) {
    if (!flag->is_boolean()) refuse_key(config, "use_rslora", *flag, "true or false");
    config.rank_stabilized = flag->get<bool>();
  }
  if (const Json* bias = find_said(json, "bias"); bias != nullptr && *bias != "none") {
    throw_error(ErrorKind::kUnsupported, "{}: bias is {}: adapters with biases are not supported", source,
                printable(dump_json(*bias)));
  }
  read_lora_targets(json, config);
  check_lora_initialisation(json, config);
  refuse_other_keys(json, config);
  return config;
}

int64_t LoraConfig::rank_of(std::string_view module) const {
  return value_of_module(rank_pattern, module, rank);
}

double LoraConfig::scale_of(std::string_view module, int64_t its_rank) const {
  const auto r = static_cast<double>(its_rank);
  return value_of_module(alpha_pattern, module, alpha) / (rank_stabilized ? std::sqrt(r) : r);
}

bool LoraConfig::targets(std::string_view module) const {
  const bool named =
      target_modules.empty() ||
      std::any_of(target_modules.begin(), target_modules.end(), [&](const std::string& name) {
        return module == name || (module.ends_with(name) && module[module.size() - name.size() - 1] == '.');
      });
  return named &&
         (layers_to_transform.empty() || std::find(layers_to_transform.begin(), layers_to_transform.end(),
                                                   lora_layer_of(module)) != layers_to_transform.end());
}

}  // namespace qiao
