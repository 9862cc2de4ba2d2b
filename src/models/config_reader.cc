#include "models/config_reader.h"

#include <cmath>

#include "base/error.h"
#include "base/quote.h"

namespace qiao {

ConfigReader::ConfigReader(const ModelFiles& files) : files_(&files) {
  if (gguf()) {
    source_ = files.metadata().source;
    const std::string* name = files.metadata().find_string("general.architecture");
    if (name == nullptr)
      throw_error(ErrorKind::kInvalidInput, "{}: metadata has no general.architecture", source_);
    architecture_ = *name;
    return;
  }
  source_ = (files.path() / "config.json").string();
  json_ = &files.config();
  if (!json_->is_object()) throw_error(ErrorKind::kInvalidInput, "{}: an object was expected", source_);
  const auto text = json_->find("text_config");
  if (text != json_->end() && text->is_object()) {
    json_ = &*text;
    path_ = "text_config.";
  }
  architecture_ = find_string({"model_type", ""}).value_or("");
  if (architecture_.empty()) refuse_missing({"model_type", ""});
}

ConfigReader::ConfigReader(const ConfigReader& parent, const Json* json, std::string path)
    : files_(parent.files_),
      source_(parent.source_),
      architecture_(parent.architecture_),
      json_(json),
      path_(std::move(path)) {}

std::string ConfigReader::gguf_name(ConfigKey key) const {
  return fmt::format("{}.{}", architecture_, key.gguf);
}

std::string ConfigReader::name(ConfigKey key) const {
  return gguf() ? gguf_name(key) : fmt::format("{}{}", path_, key.hf);
}

void ConfigReader::refuse(ConfigKey key, std::string_view value, std::string_view expected) const {
  throw_error(ErrorKind::kInvalidInput, "{}: {} is {}; {} was expected", source_, name(key), value, expected);
}

void ConfigReader::refuse_missing(ConfigKey key) const {
  throw_error(ErrorKind::kInvalidInput, "{}: {} is missing", source_, name(key));
}

bool ConfigReader::has_null(ConfigKey key) const {
  if (gguf() || key.hf.empty()) return false;
  const auto found = json_->find(std::string(key.hf));
  return found != json_->end() && found->is_null();
}

const Json* ConfigReader::find(ConfigKey key) const {
  if (key.hf.empty()) return nullptr;
  const auto found = json_->find(std::string(key.hf));
  return found == json_->end() || found->is_null() ? nullptr : &*found;
}

namespace {

std::string shown(const Json& value) { return quote_text(dump_json(value), 40); }

}  // namespace

std::optional<int64_t> ConfigReader::find_integer(ConfigKey key, int64_t low, int64_t high) const {
  std::optional<int64_t> value;
  const std::string expected = fmt::format("an integer from {} to {}", low, high);
  if (gguf()) {
    if (!key.gguf.empty()) value = files_->metadata().find_int(gguf_name(key));
  } else if (const Json* json = find(key); json != nullptr) {
    const bool too_big = json->is_number_unsigned() && json->get<uint64_t>() > uint64_t{INT64_MAX};
    if (!json->is_number_integer() || too_big) refuse(key, shown(*json), expected);
    value = json->get<int64_t>();
  }
  if (value && (*value < low || *value > high)) refuse(key, fmt::to_string(*value), expected);
  return value;
}

int64_t ConfigReader::integer(ConfigKey key, int64_t low, int64_t high) const {
  const std::optional<int64_t> value = find_integer(key, low, high);
  if (!value) refuse_missing(key);
  return *value;
}

std::optional<double> ConfigReader::find_number(ConfigKey key, double low, double high) const {
  std::optional<double> value;
  const std::string expected = fmt::format("a number from {} to {}", low, high);
  if (gguf()) {
    if (!key.gguf.empty()) value = files_->metadata().find_double(gguf_name(key));
  } else if (const Json* json = find(key); json != nullptr) {
    if (!json->is_number()) refuse(key, shown(*json), expected);
    value = json->get<double>();
  }
  if (value && !(*value >= low && *value <= high)) refuse(key, fmt::to_string(*value), expected);
  return value;
}

double ConfigReader::number(ConfigKey key, double low, double high) const {
  const std::optional<double> value = find_number(key, low, high);
  if (!value) refuse_missing(key);
  return *value;
}

std::optional<bool> ConfigReader::find_flag(ConfigKey key) const {
  if (gguf()) return key.gguf.empty() ? std::nullopt : files_->metadata().find_bool(gguf_name(key));
  const Json* json = find(key);
  if (json == nullptr) return std::nullopt;
  if (!json->is_boolean()) refuse(key, shown(*json), "true or false");
  return json->get<bool>();
}

std::optional<std::string> ConfigReader::find_string(ConfigKey key) const {
  if (gguf()) {
    const std::string* text = key.gguf.empty() ? nullptr : files_->metadata().find_string(gguf_name(key));
    return text == nullptr ? std::nullopt : std::optional(*text);
  }
  const Json* json = find(key);
  if (json == nullptr) return std::nullopt;
  if (!json->is_string()) refuse(key, shown(*json), "a string");
  return json->get<std::string>();
}

std::optional<std::vector<std::string>> ConfigReader::find_strings(ConfigKey key) const {
  if (gguf()) {
    const auto* list = key.gguf.empty() ? nullptr : files_->metadata().find_strings(gguf_name(key));
    return list == nullptr ? std::nullopt : std::optional(*list);
  }
  const Json* json = find(key);
  if (json == nullptr) return std::nullopt;
  if (!json->is_array()) refuse(key, shown(*json), "a list of strings");
  std::vector<std::string> list;
  for (const Json& entry : *json) {
    if (!entry.is_string()) refuse(key, shown(*json), "a list of strings");
    list.push_back(entry.get<std::string>());
  }
  return list;
}

std::optional<std::vector<double>> ConfigReader::find_numbers(ConfigKey key, double low, double high) const {
  std::optional<std::vector<double>> list;
  const std::string expected = fmt::format("a list of numbers from {} to {}", low, high);
  if (gguf()) {
    if (!key.gguf.empty()) list = files_->metadata().find_doubles(gguf_name(key));
  } else if (const Json* json = find(key); json != nullptr) {
    if (!json->is_array()) refuse(key, shown(*json), expected);
    list.emplace();
    for (const Json& entry : *json) {
      if (!entry.is_number()) refuse(key, shown(*json), expected);
      list->push_back(entry.get<double>());
    }
  }
  if (list) {
    for (const double value : *list) {
      if (!(value >= low && value <= high)) refuse(key, fmt::format("a list with {}", value), expected);
    }
  }
  return list;
}

bool ConfigReader::holds_list(ConfigKey key) const {
  if (gguf()) {
    const GgufValue* value = key.gguf.empty() ? nullptr : files_->metadata().find(gguf_name(key));
    return value != nullptr && std::holds_alternative<GgufArray>(*value);
  }
  const Json* json = find(key);
  return json != nullptr && json->is_array();
}

std::optional<std::vector<bool>> ConfigReader::find_layer_flags(ConfigKey key, int64_t layers) const {
  if (!gguf() || !holds_list(key)) return std::nullopt;
  const std::vector<int64_t> list = *files_->metadata().find_ints(gguf_name(key));
  if (static_cast<int64_t>(list.size()) != layers) {
    refuse(key, fmt::format("a list of {}", list.size()),
           fmt::format("one for each of the {} layers", layers));
  }
  return std::vector<bool>(list.begin(), list.end());
}

std::optional<int64_t> ConfigReader::find_shared_integer(ConfigKey key, int64_t low, int64_t high) const {
  if (!holds_list(key)) return find_integer(key, low, high);
  const std::vector<double> list = *find_numbers(key, static_cast<double>(low), static_cast<double>(high));
  for (const double value : list) {
    if (value != list.front() || value != std::floor(value))
      refuse(key, fmt::format("a list with {}", value), "the same integer for all layers");
  }
  if (list.empty()) refuse(key, "[]", "the same integer for all layers");
  return static_cast<int64_t>(list.front());
}

std::optional<ConfigReader> ConfigReader::find_object(std::string_view hf) const {
  if (gguf()) return std::nullopt;
  const Json* json = find({hf, ""});
  if (json == nullptr) return std::nullopt;
  if (!json->is_object()) refuse({hf, ""}, shown(*json), "an object");
  return ConfigReader(*this, json, fmt::format("{}{}.", path_, hf));
}

}  // namespace qiao
