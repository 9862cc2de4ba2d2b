#include "models/lora_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/fingerprint.h"
#include "base/quote.h"
#include "models/tensor_loader.h"
#include "tensor/dequantize.h"

namespace qiao {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kPeftPrefix = "base_model.model.";
constexpr size_t kMaxLoraConfigBytes = size_t{4} << 20;

// How a format ends the names of a pair.
struct PairSuffixes {
  std::string_view a, b;
};
constexpr PairSuffixes kPeftSuffixes = {".lora_A.weight", ".lora_B.weight"};
constexpr PairSuffixes kGgufSuffixes = {".weight.lora_a", ".weight.lora_b"};

bool lies_at(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// Why a tensor that is no half of a pair is not served.
std::string_view reason_of(std::string_view tensor) {
  if (tensor.find("lora_magnitude_vector") != std::string_view::npos) return "DoRA is not supported";
  if (tensor.find("lora_embedding_") != std::string_view::npos)
    return "adapters of embeddings are not supported";
  if (tensor.ends_with(".bias")) return "adapters with biases are not supported";
  if (tensor.find(".modules_to_save.") != std::string_view::npos || tensor.ends_with(".weight"))
    return "an adapter that replaces whole tensors (modules_to_save) is not supported";
  return "the two matrices of LoRA were expected";
}

}  // namespace

std::unique_ptr<LoraFiles> LoraFiles::open(const fs::path& path) {
  std::unique_ptr<LoraFiles> files(new LoraFiles);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found)
    throw_error(ErrorKind::kNotFound, "{}: no such file or directory", path.string());
  if (status.type() == fs::file_type::none)
    throw_error(ErrorKind::kIo, "{}: {}", path.string(), error.message());
  if (fs::is_directory(status)) {
    files->open_peft(path);
  } else if (path.filename() == "adapter_model.safetensors") {
    files->open_peft(path.parent_path());
  } else {
    files->open_gguf(path);
  }
  return files;
}

std::unique_ptr<LoraFiles> LoraFiles::of_values(std::string_view config,
                                                const std::vector<LoraValues>& values,
                                                std::string_view source) {
  std::unique_ptr<LoraFiles> files(new LoraFiles);
  files->config_ = parse_lora_config(config, source);
  files->source_ = source;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, std::span<const float> matrix) {
    const std::span<const std::byte> bytes = std::as_bytes(matrix);
    files->safetensors_.tensors.push_back(
        {name, DType::kF32, std::move(shape), 0, files->memory_.size(), bytes.size(), {}});
    files->memory_.insert(files->memory_.end(), bytes.begin(), bytes.end());
  };
  for (const LoraValues& pair : values) {
    const std::string name = fmt::format("{}{}", kPeftPrefix, pair.module);
    add(fmt::format("{}{}", name, kPeftSuffixes.a), {pair.rank, pair.columns}, pair.a);
    add(fmt::format("{}{}", name, kPeftSuffixes.b), {pair.rows, pair.rank}, pair.b);
  }
  files->read_pairs(files->safetensors_.tensors);
  return files;
}

void LoraFiles::open_peft(const fs::path& directory) {
  const fs::path configuration = directory / "adapter_config.json",
                 tensors = directory / "adapter_model.safetensors";
  if (lies_at(configuration) && !lies_at(tensors) && lies_at(directory / "adapter_model.bin")) {
    throw_error(ErrorKind::kUnsupported,
                "{}: a PyTorch pickle, which may run code when read; adapter_model.safetensors is needed",
                (directory / "adapter_model.bin").string());
  }
  for (const fs::path& needed : {configuration, tensors}) {
    if (lies_at(needed)) continue;
    throw_error(ErrorKind::kNotFound,
                "{}: no LoRA adapter: looked for adapter_config.json and adapter_model.safetensors; there is "
                "no {}",
                directory.string(), needed.filename().string());
  }
  config_ = parse_lora_config(read_file(configuration, kMaxLoraConfigBytes), configuration.string());
  source_ = tensors.string();
  safetensors_ = open_safetensors(tensors, TypePolicy::kRefuseUnsupported);
  read_pairs(safetensors_.tensors);
}

void LoraFiles::open_gguf(const fs::path& file) {
  gguf_ = GgufFile::open(file);
  source_ = file.string();
  const GgufMetadata& metadata = gguf_->metadata();
  const auto expect = [&](std::string_view key, std::string_view value) {
    const std::string* found = metadata.find_string(key);
    if (found != nullptr && *found == value) return;
    throw_error(ErrorKind::kInvalidInput, "{}: {} is {}; {} was expected: this is no LoRA adapter", source_,
                key, found == nullptr ? "missing" : quote_text(*found), quote_text(value));
  };
  expect("general.type", "adapter");
  expect("adapter.type", "lora");
  const std::string* architecture = metadata.find_string("general.architecture");
  if (architecture == nullptr)
    throw_error(ErrorKind::kInvalidInput, "{}: general.architecture is missing", source_);
  architecture_ = *architecture;
  const std::optional<double> alpha = metadata.find_double("adapter.lora.alpha");
  if (!alpha || !(std::abs(*alpha) <= 1e9)) {
    throw_error(ErrorKind::kInvalidInput, "{}: adapter.lora.alpha is {}; a number was expected", source_,
                alpha ? fmt::to_string(*alpha) : "missing");
  }
  gguf_alpha_ = *alpha;
  if (metadata.find("adapter.alora.invocation_tokens") != nullptr) {
    throw_error(ErrorKind::kUnsupported,
                "{}: adapter.alora.invocation_tokens: adapters that begin in the middle of a prompt are not "
                "supported",
                source_);
  }
  read_pairs(gguf_->tensors());
}

void LoraFiles::read_pairs(const std::vector<TensorInfo>& tensors) {
  const PairSuffixes suffixes = gguf() ? kGgufSuffixes : kPeftSuffixes;
  std::map<std::string_view, LoraPair> found;  // by module
  for (const TensorInfo& tensor : tensors) {
    std::string_view name = tensor.name;
    if (!gguf() && name.starts_with(kPeftPrefix)) name.remove_prefix(kPeftPrefix.size());
    const bool is_a = name.ends_with(suffixes.a);
    if (!is_a && !name.ends_with(suffixes.b)) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor {} ({}): {}", source_, quote_text(tensor.name),
                  shape_text(tensor), reason_of(tensor.name));
    }
    if (tensor.shape.size() != 2 || tensor.shape[0] < 1 || tensor.shape[1] < 1) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; {} was expected", source_,
                  quote_text(tensor.name), shape_text(tensor), is_a ? "[rank, columns]" : "[rows, rank]");
    }
    name.remove_suffix(suffixes.a.size());
    LoraPair& pair = found[name];
    pair.module = name;
    const TensorInfo*& half = is_a ? pair.a : pair.b;
    if (half != nullptr) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensors {} and {} are the same half of one module", source_,
                  quote_text(half->name), quote_text(tensor.name));
    }
    half = &tensor;
  }
  if (found.empty()) throw_error(ErrorKind::kInvalidInput, "{}: holds no tensors", source_);
  for (auto& [module, pair] : found) {
    if (pair.a == nullptr || pair.b == nullptr) {
      const TensorInfo& half = pair.a != nullptr ? *pair.a : *pair.b;
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} ({}) stands alone; {}{} is missing", source_,
                  quote_text(half.name), shape_text(half), printable(module),
                  pair.a != nullptr ? suffixes.b : suffixes.a);
    }
    if (pair.a->shape[0] != pair.b->shape[1]) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; [rows, {}] was expected, as {} is {}",
                  source_, quote_text(pair.b->name), shape_text(*pair.b), pair.a->shape[0],
                  quote_text(pair.a->name), shape_text(*pair.a));
    }
    pairs_.push_back(std::move(pair));
  }
}

std::span<const std::byte> LoraFiles::bytes(const TensorInfo& tensor) const {
  if (!memory_.empty()) return std::span(memory_).subspan(tensor.offset, tensor.bytes);
  const std::vector<MappedFile>& files = gguf() ? gguf_->files() : safetensors_.files;
  return files[tensor.file].bytes().subspan(tensor.offset, tensor.bytes);
}

std::vector<float> LoraFiles::floats(const TensorInfo& tensor) const {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  dequantize(tensor.dtype, bytes(tensor).data(), tensor.elements(), values.data());
  return values;
}

uint64_t LoraFiles::fingerprint() const {
  Fingerprint print;
  for (const LoraPair& pair : pairs_) {
    const double factor = scale(pair);
    print.add(pair.module.data(), pair.module.size());
    print.add(&factor, sizeof(factor));
    for (const TensorInfo* half : {pair.a, pair.b}) {
      print.add(half->shape.data(), half->shape.size() * sizeof(int64_t));
      print.add(bytes(*half).data(), bytes(*half).size());
    }
  }
  return print.value();
}

double LoraFiles::scale(const LoraPair& pair) const {
  const int64_t rank = pair.a->shape[0];
  // As llama.cpp: an alpha of 0 stands for none.
  if (gguf()) return gguf_alpha_ == 0 ? 1.0 : gguf_alpha_ / static_cast<double>(rank);
  if (!config_.targets(pair.module)) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: tensor {}: not of target_modules and layers_to_transform of {}", source_,
                quote_text(pair.a->name), config_.source);
  }
  if (const int64_t expected = config_.rank_of(pair.module); rank != expected) {
    throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; a rank of {} was expected by {}", source_,
                quote_text(pair.a->name), shape_text(*pair.a), expected, config_.source);
  }
  return config_.scale_of(pair.module, rank);
}

}  // namespace qiao
