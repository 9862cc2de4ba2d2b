#include "models/pooling.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/quote.h"
#include "models/families.h"
#include "tensor/floats.h"

namespace qiao {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxModuleBytes = 1 << 20;
constexpr size_t kMaxModules = 16;

Json read_config(const fs::path& path) {
  if (!fs::exists(path)) return Json::object();
  Json json = parse_json(read_regular_file(path, kMaxModuleBytes), path.string());
  return json;
}

void pool_into(PoolingKind kind, std::span<const float> hidden, size_t width, std::vector<double>& out) {
  const size_t tokens = hidden.size() / width, first = out.size();
  const auto row = [&](size_t t) { return hidden.subspan(t * width, width); };
  if (kind == PoolingKind::kCls || kind == PoolingKind::kLastToken) {
    for (const float value : row(kind == PoolingKind::kCls ? 0 : tokens - 1)) out.push_back(value);
    return;
  }
  const bool max = kind == PoolingKind::kMax;
  out.resize(first + width, max ? -INFINITY : 0.0);
  double weights = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const double weight = kind == PoolingKind::kWeightedMean ? static_cast<double>(t + 1) : 1.0;
    weights += weight;
    const std::span<const float> values = row(t);
    for (size_t c = 0; c < width; ++c) {
      double& into = out[first + c];
      into = max ? std::max<double>(into, values[c]) : into + weight * values[c];
    }
  }
  if (max) return;
  const double divisor = kind == PoolingKind::kMeanSqrtLen ? std::sqrt(weights) : weights;
  for (size_t c = 0; c < width; ++c) out[first + c] /= divisor;
}

std::vector<float> read_floats(const ModelFiles& files, const std::string& name,
                               const std::vector<int64_t>& shape) {
  const TensorInfo* tensor = files.find(name);
  if (tensor == nullptr || tensor->shape != shape) {
    throw_error(ErrorKind::kInvalidInput, "{}: tensor {}[{}] is missing or has another shape",
                files.path().string(), name, fmt::join(shape, ", "));
  }
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  std::vector<float> values(count);
  if (!is_dense_float(tensor->dtype)) {
    throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; F32, F16 or BF16 was expected",
                files.path().string(), name, tensor->type_name());
  }
  to_floats(tensor->dtype, files.bytes(*tensor).data(), values);
  return values;
}

DenseModule read_dense(const ModelFiles& files, const std::string& stem, int64_t rows, int64_t columns,
                       HeadActivation activation) {
  DenseModule dense{rows, columns, read_floats(files, stem + ".weight", {rows, columns}), {}, activation};
  if (files.find(stem + ".bias") != nullptr) dense.bias = read_floats(files, stem + ".bias", {rows});
  return dense;
}

// A number of a module's config.json within bounds.
int64_t size_in(const Json& config, const char* key, const fs::path& source) {
  const auto found = config.find(key);
  const bool there = found != config.end() && found->is_number_integer();
  const int64_t value = there && !(found->is_number_unsigned() && found->get<uint64_t>() > INT32_MAX)
                            ? found->get<int64_t>()
                            : 0;
  if (value < 1 || value > kMaxWidth) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} is missing or out of range; 1 to {} was expected",
                source.string(), key, kMaxWidth);
  }
  return value;
}

bool is_true(const Json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && found->is_boolean() && found->get<bool>();
}

std::string text_of(const Json& config, const char* key) {
  const auto found = config.is_object() ? config.find(key) : config.end();
  return found != config.end() && found->is_string() ? found->get<std::string>() : "";
}

PoolingKind kind_of(const std::string& name, const fs::path& source) {
  if (name == "mean") return PoolingKind::kMean;
  if (name == "cls") return PoolingKind::kCls;
  if (name == "max") return PoolingKind::kMax;
  if (name == "mean_sqrt_len_tokens") return PoolingKind::kMeanSqrtLen;
  if (name == "lasttoken") return PoolingKind::kLastToken;
  if (name == "weightedmean") return PoolingKind::kWeightedMean;
  throw_error(ErrorKind::kUnsupported, "{}: pooling mode {} is not known", source.string(), quote_text(name));
}

// In sentence-transformers' order of concatenation. Newer files name the mode, older ones set flags.
std::vector<PoolingKind> read_kinds(const Json& config, const fs::path& source) {
  const auto named = config.find("pooling_mode");
  if (named != config.end() && named->is_string()) return {kind_of(named->get<std::string>(), source)};
  constexpr std::pair<const char*, PoolingKind> kFlags[] = {
      {"pooling_mode_cls_token", PoolingKind::kCls},
      {"pooling_mode_max_tokens", PoolingKind::kMax},
      {"pooling_mode_mean_tokens", PoolingKind::kMean},
      {"pooling_mode_mean_sqrt_len_tokens", PoolingKind::kMeanSqrtLen},
      {"pooling_mode_weightedmean_tokens", PoolingKind::kWeightedMean},
      {"pooling_mode_lasttoken", PoolingKind::kLastToken}};
  std::vector<PoolingKind> kinds;
  for (const auto& [flag, kind] : kFlags)
    if (is_true(config, flag)) kinds.push_back(kind);
  return kinds.empty() ? std::vector{PoolingKind::kMean} : kinds;
}

// A module's folder: one plain name below the model's.
fs::path module_folder(const fs::path& model, const std::string& name, const fs::path& source) {
  if (name.empty()) return model;
  if (name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    throw_error(ErrorKind::kInvalidInput, "{}: path {} is not a folder's name", source.string(),
                quote_text(name));
  }
  return model / name;
}

// torch.nn's class of a Dense module; Tanh is the module's default.
HeadActivation dense_activation(const std::string& name, const fs::path& source) {
  const std::string kind = name.substr(name.rfind('.') + 1);
  if (kind.empty() || kind == "Tanh") return HeadActivation::kTanh;
  if (kind == "Identity") return HeadActivation::kNone;
  if (kind == "ReLU") return HeadActivation::kRelu;
  if (kind == "GELU") return HeadActivation::kGelu;
  throw_error(ErrorKind::kUnsupported,
              "{}: activation_function {} is not supported; Tanh, ReLU, GELU and Identity are",
              source.string(), quote_text(name));
}

double activate(double x, HeadActivation activation) {
  switch (activation) {
    case HeadActivation::kTanh:
      return std::tanh(x);
    case HeadActivation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x * std::sqrt(0.5)));
    case HeadActivation::kRelu:
      return std::max(x, 0.0);
    case HeadActivation::kNone:
      break;
  }
  return x;
}

// How many tokens the tokenizer says the model takes; 0 where it does not (or says 10^30, as some do).
int64_t tokenizer_limit(const ModelFiles& files) {
  if (files.kind() == ModelFiles::Kind::kGguf) return 0;
  const Json& config = files.tokenizer_config();
  const auto found = config.is_object() ? config.find("model_max_length") : config.end();
  if (found == config.end() || !found->is_number()) return 0;
  const double limit = found->get<double>();
  return limit >= 1 && limit <= static_cast<double>(kMaxWidth) ? static_cast<int64_t>(limit) : 0;
}

void add_dense(const fs::path& folder, int64_t columns, PoolingHead& head) {
  const fs::path source = folder / "config.json";
  const Json config = read_config(source);
  const HeadActivation activation = dense_activation(text_of(config, "activation_function"), source);
  if (size_in(config, "in_features", source) != columns) {
    throw_error(ErrorKind::kInvalidInput, "{}: in_features is {}; {} was expected", source.string(),
                size_in(config, "in_features", source), columns);
  }
  const auto files = ModelFiles::open(folder);
  head.dense.push_back(
      read_dense(*files, "linear", size_in(config, "out_features", source), columns, activation));
}

void read_modules(const fs::path& model, const EncoderConfig& config, PoolingHead& head) {
  const fs::path source = model / "modules.json";
  const Json modules = parse_json(read_regular_file(source, kMaxModuleBytes), source.string());
  if (!modules.is_array() || modules.size() > kMaxModules) {
    throw_error(ErrorKind::kInvalidInput, "{}: a list of at most {} modules was expected", source.string(),
                kMaxModules);
  }
  head.normalize = false;
  int64_t columns = config.hidden_size;
  for (const Json& module : modules) {
    const std::string type = text_of(module, "type"), name = type.substr(type.rfind('.') + 1);
    const fs::path folder = module_folder(model, text_of(module, "path"), source);
    if (name == "Transformer") {
      const Json settings = read_config(folder / "sentence_bert_config.json");
      if (settings.contains("max_seq_length") && !settings["max_seq_length"].is_null())
        head.max_tokens = size_in(settings, "max_seq_length", folder / "sentence_bert_config.json");
      head.lowercase = is_true(settings, "do_lower_case");
    } else if (name == "Pooling") {
      const Json pooling = read_config(folder / "config.json");
      head.kinds = read_kinds(pooling, folder / "config.json");
      columns = config.hidden_size * static_cast<int64_t>(head.kinds.size());
    } else if (name == "Dense") {
      add_dense(folder, columns, head);
      columns = head.dense.back().rows;
    } else if (name == "Normalize") {
      head.normalize = true;
    } else {
      throw_error(ErrorKind::kUnsupported,
                  "{}: module {} is not supported; Transformer, Pooling, Dense and Normalize are",
                  source.string(), quote_text(type));
    }
  }
}

// Logits of a classification model: its head on the first token.
void read_head(const ModelFiles& files, const EncoderConfig& config, PoolingHead& head) {
  const EncoderFamily& family = *find_encoder_family(files);
  head.kinds = {PoolingKind::kCls};
  head.normalize = false;
  head.scores = true;
  const std::string dense(family.head_dense);
  if (files.find(dense + ".weight") != nullptr)
    head.dense.push_back(
        read_dense(files, dense, config.hidden_size, config.hidden_size, family.head_activation));
  head.dense.push_back(read_dense(files, std::string(family.head_output), config.num_labels,
                                  config.hidden_size, HeadActivation::kNone));
}

void read_gguf_pooling(const ModelFiles& files, PoolingHead& head) {
  const std::string key = "bert.pooling_type";  // of llama.cpp's enum llama_pooling_type
  const int64_t type = files.metadata().find_int(key).value_or(1);
  if (type < 0 || type > 3)
    throw_error(ErrorKind::kUnsupported, "{}: {} {} is not supported; 0 to 3 are", files.path().string(), key,
                type);
  head.kinds = {type == 2 ? PoolingKind::kCls : type == 3 ? PoolingKind::kLastToken : PoolingKind::kMean};
}

}  // namespace

std::vector<float> PoolingHead::apply(std::span<const float> hidden, int64_t width) const {
  QIAO_ASSERT(!hidden.empty() && hidden.size() % static_cast<size_t>(width) == 0);
  std::vector<double> vector;
  for (const PoolingKind kind : kinds) pool_into(kind, hidden, static_cast<size_t>(width), vector);
  for (const DenseModule& module : dense) {
    std::vector<double> next(static_cast<size_t>(module.rows));
    for (size_t r = 0; r < next.size(); ++r) {
      const float* weight = module.weight.data() + r * vector.size();
      double sum = module.bias.empty() ? 0.0f : module.bias[r];
      for (size_t c = 0; c < vector.size(); ++c) sum += vector[c] * weight[c];
      next[r] = activate(sum, module.activation);
    }
    vector = std::move(next);
  }
  std::vector<float> result(vector.begin(), vector.end());
  if (normalize) shorten(result, static_cast<int64_t>(result.size()));
  return result;
}

PoolingHead read_pooling(const ModelFiles& files, const EncoderConfig& config) {
  PoolingHead head;
  head.normalize = true;
  const bool gguf = files.kind() == ModelFiles::Kind::kGguf;
  if (config.num_labels > 0) {
    read_head(files, config, head);
  } else if (gguf) {
    read_gguf_pooling(files, head);
  } else if (fs::exists(files.path() / "modules.json")) {
    read_modules(files.path(), config, head);
  }
  head.dimensions = head.dense.empty() ? config.hidden_size * static_cast<int64_t>(head.kinds.size())
                                       : head.dense.back().rows;
  const int64_t most = config.max_positions();
  if (head.max_tokens == 0) head.max_tokens = tokenizer_limit(files);
  head.max_tokens = head.max_tokens == 0 ? most : std::min(head.max_tokens, most);
  return head;
}

void shorten(std::vector<float>& vector, int64_t dimensions) {
  vector.resize(static_cast<size_t>(dimensions));
  double squares = 0;
  for (const float value : vector) squares += static_cast<double>(value) * value;
  const double scale = squares > 0 ? 1.0 / std::sqrt(squares) : 0.0;
  for (float& value : vector) value = static_cast<float>(value * scale);
}

}  // namespace qiao
