#include "formats/inspection.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <type_traits>

#include "base/quote.h"
#include "base/units.h"

namespace qiao {
namespace {

constexpr size_t kShortArray = 8;     // shown in whole as text;
constexpr size_t kShownElements = 4;  // of a longer one, this many
constexpr size_t kFirstElements = 8;  // of a long array, in JSON
constexpr size_t kLongArray = 64;     // in JSON
constexpr size_t kShownStringBytes = 88;
constexpr size_t kNameBytes = 120;

// The value under a path of keys of nested objects; nullptr where any step is not there.
const Json* at_path(const Json& json, std::initializer_list<const char*> keys) {
  const Json* here = &json;
  for (const char* key : keys) {
    if (!here->is_object()) return nullptr;
    const auto found = here->find(key);
    if (found == here->end()) return nullptr;
    here = &*found;
  }
  return here;
}

// Of a text model, or of the language half of one that also sees.
std::optional<int64_t> config_int(const Json& config, const char* key) {
  for (const Json* value : {at_path(config, {key}), at_path(config, {"text_config", key})}) {
    if (value != nullptr && value->is_number_integer()) return value->get<int64_t>();
  }
  return std::nullopt;
}

const std::string* text_or_null(const GgufMetadata& metadata, std::string_view key) {
  const GgufValue* value = metadata.find(key);
  return value == nullptr ? nullptr : std::get_if<std::string>(value);
}

std::optional<int64_t> int_or_nothing(const GgufMetadata& metadata, std::string_view key) {
  const GgufValue* value = metadata.find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* n = std::get_if<int64_t>(value)) return *n;
  if (const auto* n = std::get_if<uint64_t>(value); n != nullptr && *n >> 63 == 0)
    return static_cast<int64_t>(*n);
  return std::nullopt;
}

void summarize_gguf(const ModelFiles& model, ModelSummary& summary) {
  const GgufMetadata& metadata = model.metadata();
  summary.format = fmt::format("GGUF v{}", model.gguf_version());
  if (const auto* text = text_or_null(metadata, "general.architecture")) summary.architecture = *text;
  if (const auto* text = text_or_null(metadata, "general.name")) summary.name = *text;
  summary.context_length = int_or_nothing(metadata, summary.architecture + ".context_length");
  summary.vocabulary_size = int_or_nothing(metadata, summary.architecture + ".vocab_size");
  if (const GgufValue* tokens = metadata.find("tokenizer.ggml.tokens")) {
    if (const auto* array = std::get_if<GgufArray>(tokens)) {
      summary.vocabulary_size =
          std::visit([](const auto& v) { return static_cast<int64_t>(v.size()); }, *array);
    }
  }
}

void summarize_hugging_face(const ModelFiles& model, ModelSummary& summary) {
  summary.format = !model.config().is_null() ? "Hugging Face (safetensors)"
                   : model.files().empty()   ? "tokenizer.json"
                                             : "safetensors";
  const Json* architectures = at_path(model.config(), {"architectures"});
  const Json* type = at_path(model.config(), {"model_type"});
  if (architectures != nullptr && architectures->is_array() && !architectures->empty() &&
      architectures->front().is_string()) {
    summary.architecture = architectures->front().get<std::string>();
  } else if (type != nullptr && type->is_string()) {
    summary.architecture = type->get<std::string>();
  }
  if (const Json* name = at_path(model.config(), {"_name_or_path"}); name != nullptr && name->is_string()) {
    summary.name = name->get<std::string>();
  }
  summary.context_length = config_int(model.config(), "max_position_embeddings");
  summary.vocabulary_size = config_int(model.config(), "vocab_size");
}

template <typename T>
std::string element_text(const T& element) {
  if constexpr (std::is_same_v<T, std::string>) {
    return quote_text(element, kShownStringBytes);
  } else if constexpr (std::is_same_v<T, double>) {
    return fmt::format("{:.7g}", element);  // most were single precision
  } else {
    return fmt::format("{}", element);
  }
}

template <typename T>
std::string array_text(const std::vector<T>& values, bool full) {
  const size_t shown = full || values.size() <= kShortArray ? values.size() : kShownElements;
  std::vector<std::string> texts;
  for (size_t i = 0; i < shown; ++i) texts.push_back(element_text(static_cast<T>(values[i])));
  if (shown == values.size()) return fmt::format("[{}]", fmt::join(texts, ", "));
  return fmt::format("{} × {}: [{}, …]", values.size(),
                     std::is_same_v<T, std::string> ? "text"
                     : std::is_same_v<T, bool>      ? "boolean"
                                                    : "number",
                     fmt::join(texts, ", "));
}

std::string value_text(const GgufValue& value, bool full) {
  return std::visit(
      [&]<typename T>(const T& v) -> std::string {
        if constexpr (std::is_same_v<T, GgufArray>) {
          return std::visit([&](const auto& values) { return array_text(values, full); }, v);
        } else if constexpr (std::is_same_v<T, std::string>) {
          return quote_text(v, full ? v.size() : kShownStringBytes);
        } else {
          return element_text(v);
        }
      },
      value);
}

template <typename T>
Json array_json(const std::vector<T>& values, bool full) {
  const bool whole = full || values.size() <= kLongArray;
  Json list = Json::array();
  for (size_t i = 0; i < (whole ? values.size() : kFirstElements); ++i)
    list.push_back(static_cast<T>(values[i]));
  if (whole) return list;
  return {{"count", values.size()}, {"first", std::move(list)}};
}

Json value_json(const GgufValue& value, bool full) {
  return std::visit(
      [&]<typename T>(const T& v) -> Json {
        if constexpr (std::is_same_v<T, GgufArray>) {
          return std::visit([&](const auto& values) { return array_json(values, full); }, v);
        } else {
          return v;
        }
      },
      value);
}

// Nested objects become dotted keys.
void flatten(const Json& json, const std::string& prefix, bool full,
             std::vector<std::pair<std::string, std::string>>& rows) {
  for (const auto& [key, value] : json.items()) {
    if (value.is_object() && !value.empty()) {
      flatten(value, prefix + key + ".", full, rows);
    } else if (value.is_string()) {
      const auto& text = value.get_ref<const std::string&>();
      rows.emplace_back(prefix + key, quote_text(text, full ? text.size() : kShownStringBytes));
    } else {
      const std::string text = dump_json(value);
      rows.emplace_back(prefix + key, printable(text, full ? text.size() : kShownStringBytes));
    }
  }
}

std::vector<std::pair<std::string, std::string>> metadata_rows(const ModelFiles& model, bool full) {
  std::vector<std::pair<std::string, std::string>> rows;
  if (model.kind() == ModelFiles::Kind::kGguf) {
    for (const auto& [key, value] : model.metadata().entries) rows.emplace_back(key, value_text(value, full));
  } else {
    if (model.config().is_object()) flatten(model.config(), "", full, rows);
    if (model.generation_config().is_object())
      flatten(model.generation_config(), "generation_config.", full, rows);
  }
  return rows;
}

void append_table(std::string& out, const std::vector<std::pair<std::string, std::string>>& rows) {
  constexpr size_t kWidest = 48;
  size_t width = 0;
  for (const auto& [key, value] : rows)
    width = std::max(width, std::min(printable(key, kNameBytes).size(), kWidest));
  for (const auto& [key, value] : rows) {
    fmt::format_to(std::back_inserter(out), "  {:<{}}  {}\n", printable(key, kNameBytes), width, value);
  }
}

void append_summary(std::string& out, const ModelFiles& model, const ModelSummary& summary) {
  std::vector<std::pair<std::string, std::string>> rows;
  rows.emplace_back("format", summary.format);
  if (!summary.architecture.empty()) rows.emplace_back("architecture", printable(summary.architecture));
  if (!summary.name.empty()) rows.emplace_back("name", printable(summary.name));
  rows.emplace_back("files", fmt::format("{}, {}", model.files().size(), format_bytes(summary.file_bytes)));
  if (summary.parameters > 0) {
    rows.emplace_back("parameters", format_count(summary.parameters));
    rows.emplace_back("weights",
                      fmt::format("{}, {:.2f} bits a parameter", format_bytes(summary.weight_bytes),
                                  8.0 * static_cast<double>(summary.weight_bytes) /
                                      static_cast<double>(summary.parameters)));
  }
  if (summary.context_length) rows.emplace_back("context", fmt::format("{} tokens", *summary.context_length));
  if (summary.vocabulary_size)
    rows.emplace_back("vocabulary", fmt::format("{} tokens", *summary.vocabulary_size));
  append_table(out, rows);

  std::vector<std::pair<std::string, TypeShare>> types(summary.types.begin(), summary.types.end());
  std::stable_sort(types.begin(), types.end(),
                   [](const auto& a, const auto& b) { return a.second.bytes > b.second.bytes; });
  if (!types.empty()) out += "\nElement types\n";
  for (const auto& [type, share] : types) {
    const double percent = summary.weight_bytes == 0 ? 0.0
                                                     : 100.0 * static_cast<double>(share.bytes) /
                                                           static_cast<double>(summary.weight_bytes);
    fmt::format_to(std::back_inserter(out), "  {:<8} {:>6} {} {:>10} {:>11} {:>6.1f}%\n", type, share.tensors,
                   share.tensors == 1 ? "tensor " : "tensors", format_count(share.parameters),
                   format_bytes(share.bytes), percent);
  }
}

void append_tensors(std::string& out, const ModelFiles& model) {
  size_t name_width = 0, shape_width = 0;
  const auto shape_text = [](const TensorInfo& t) { return fmt::format("[{}]", fmt::join(t.shape, ", ")); };
  for (const TensorInfo& tensor : model.tensors()) {
    name_width = std::max(name_width, printable(tensor.name, kNameBytes).size());
    shape_width = std::max(shape_width, shape_text(tensor).size());
  }
  if (!out.empty()) out += '\n';
  fmt::format_to(std::back_inserter(out), "Tensors ({})\n", model.tensors().size());
  for (const TensorInfo& tensor : model.tensors()) {
    fmt::format_to(std::back_inserter(out), "  {:<{}}  {:>{}}  {:<8} {:>11}{}\n",
                   printable(tensor.name, kNameBytes), name_width, shape_text(tensor), shape_width,
                   tensor.type_name(), format_bytes(tensor.bytes),
                   tensor.unsupported.empty() ? "" : "  unsupported type");
  }
}

}  // namespace

ModelSummary summarize(const ModelFiles& model) {
  ModelSummary summary;
  for (const MappedFile& file : model.files()) summary.file_bytes += file.size();
  for (const TensorInfo& tensor : model.tensors()) {
    TypeShare& share = summary.types[std::string(tensor.type_name())];
    const auto elements = static_cast<uint64_t>(tensor.elements());
    ++share.tensors;
    share.parameters += elements;
    share.bytes += tensor.bytes;
    summary.parameters += elements;
    summary.weight_bytes += tensor.bytes;
  }
  if (model.kind() == ModelFiles::Kind::kGguf) {
    summarize_gguf(model, summary);
  } else {
    summarize_hugging_face(model, summary);
  }
  return summary;
}

std::string inspect_text(const ModelFiles& model, const InspectOptions& options) {
  std::string out;
  if (options.summary) {
    out = printable(model.path().string(), 4096) + "\n";
    append_summary(out, model, summarize(model));
  }
  const auto rows = metadata_rows(model, options.full);
  if (!rows.empty()) {
    if (!out.empty()) out += '\n';
    fmt::format_to(std::back_inserter(out), "Metadata ({})\n", rows.size());
    append_table(out, rows);
  }
  if (options.tensors && !model.tensors().empty()) append_tensors(out, model);
  return out;
}

Json inspect_json(const ModelFiles& model, const InspectOptions& options) {
  Json out = Json::object();
  if (options.summary) {
    const ModelSummary summary = summarize(model);
    out["path"] = model.path().string();
    out["format"] = summary.format;
    out["architecture"] = summary.architecture.empty() ? Json() : Json(summary.architecture);
    out["name"] = summary.name.empty() ? Json() : Json(summary.name);
    out["parameters"] = summary.parameters;
    out["weight_bytes"] = summary.weight_bytes;
    out["context_length"] = summary.context_length ? Json(*summary.context_length) : Json();
    out["vocabulary_size"] = summary.vocabulary_size ? Json(*summary.vocabulary_size) : Json();
    out["files"] = Json::array();
    for (const MappedFile& file : model.files()) {
      out["files"].push_back({{"path", file.path().string()}, {"bytes", file.size()}});
    }
    out["types"] = Json::array();
    for (const auto& [type, share] : summary.types) {
      out["types"].push_back({{"type", type},
                              {"tensors", share.tensors},
                              {"parameters", share.parameters},
                              {"bytes", share.bytes}});
    }
  }
  Json metadata = Json::object();
  if (model.kind() == ModelFiles::Kind::kGguf) {
    for (const auto& [key, value] : model.metadata().entries) metadata[key] = value_json(value, options.full);
  } else {
    metadata["config"] = model.config();
    metadata["generation_config"] = model.generation_config();
  }
  out["metadata"] = std::move(metadata);
  if (options.tensors) {
    out["tensors"] = Json::array();
    for (const TensorInfo& tensor : model.tensors()) {
      out["tensors"].push_back({{"name", tensor.name},
                                {"shape", tensor.shape},
                                {"type", tensor.type_name()},
                                {"supported", tensor.unsupported.empty()},
                                {"bytes", tensor.bytes},
                                {"file", tensor.file},
                                {"offset", tensor.offset}});
    }
  }
  return out;
}

}  // namespace qiao
