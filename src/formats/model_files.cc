#include "formats/model_files.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "base/error.h"
#include "base/quote.h"
#include "formats/fp8_tensors.h"
#include "formats/quantization_config.h"
#include "formats/safetensors.h"

namespace qiao {
namespace fs = std::filesystem;

namespace {

// Far above any published file of the kind; a tree of JSON takes up to some sixteen times its text.
constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr size_t kMaxTokenizerBytes = size_t{64} << 20;
constexpr size_t kMaxTemplateBytes = size_t{4} << 20;

bool is_there(const fs::path& path) {
  std::error_code error;  // a directory that may not be searched: as good as absent
  return fs::exists(path, error);
}

// Null where the file is absent.
Json read_object(const fs::path& path, size_t max_bytes) {
  if (!is_there(path)) return nullptr;
  Json json = parse_json(read_regular_file(path, max_bytes), path.string(), {.max_bytes = max_bytes});
  if (!json.is_object())
    throw_error(ErrorKind::kInvalidInput, "{}: a JSON object was expected", path.string());
  return json;
}

// "chat_template" of an object: a string, or a list of {name, template}. Nothing where it has none of that
// name.
std::optional<std::string> template_in(const Json& object, std::string_view name, const fs::path& source) {
  const auto found = object.is_object() ? object.find("chat_template") : object.end();
  if (found == object.end() || found->is_null()) return std::nullopt;
  const bool is_default = name.empty() || name == "default";
  if (found->is_string()) return is_default ? std::optional(found->get<std::string>()) : std::nullopt;
  const auto refuse = [&] {
    throw_error(ErrorKind::kInvalidInput,
                "{}: chat_template: a string or a list of {{name, template}} was expected", source.string());
  };
  if (!found->is_array()) refuse();
  std::optional<std::string> chosen;
  for (const Json& entry : *found) {
    const auto entry_name = entry.is_object() ? entry.find("name") : entry.end();
    const auto text = entry.is_object() ? entry.find("template") : entry.end();
    if (entry_name == entry.end() || text == entry.end() || !entry_name->is_string() || !text->is_string())
      refuse();
    if (entry_name->get_ref<const std::string&>() == (is_default ? "default" : name))
      chosen = text->get<std::string>();
  }
  return chosen;
}

struct Listing {
  std::vector<std::string> safetensors;
  std::vector<std::string> gguf_models;  // one name a model: of a split set the first in order
  bool has_pickle = false;               // *.bin, *.pt, *.pth
};

Listing list_directory(const fs::path& directory) {
  constexpr size_t kMaxFiles = 100'000;
  Listing listing;
  std::set<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    names.insert(entry->path().filename().string());
    if (names.size() > kMaxFiles) {
      throw_error(ErrorKind::kTooLarge, "{}: holds more than {} files", directory.string(), kMaxFiles);
    }
  }
  if (error) throw_error(ErrorKind::kIo, "{}: cannot list: {}", directory.string(), error.message());
  std::set<std::string> split_stems;
  std::vector<std::string> projectors;
  for (const std::string& name : names) {
    if (name.ends_with(".safetensors")) {
      listing.safetensors.push_back(name);
    } else if (name.ends_with(".gguf") && name.starts_with("mmproj")) {
      projectors.push_back(name);
    } else if (name.ends_with(".gguf")) {
      const size_t tail = std::string_view("-00001-of-00002.gguf").size();
      const bool part = name.size() > tail && name.substr(name.size() - tail + 6, 4) == "-of-";
      if (!part || split_stems.insert(name.substr(0, name.size() - tail)).second)
        listing.gguf_models.push_back(name);
    } else if (name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth")) {
      listing.has_pickle = true;
    }
  }
  if (listing.gguf_models.empty()) listing.gguf_models = std::move(projectors);
  return listing;
}

std::string join_some(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < 8; ++i) text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > 8 ? text + fmt::format(" and {} more", names.size() - 8) : text;
}

}  // namespace

struct ModelFiles::Data {
  Kind kind = Kind::kGguf;
  fs::path path;
  std::shared_ptr<GgufFile> gguf;
  SafetensorsFiles safetensors;
  Json config, generation_config, tokenizer_config;

  mutable std::once_flag tokenizer_once;
  mutable Json tokenizer_json;

  // Tensors that the file has at an address unfit for their elements, by their place in tensors().
  mutable std::mutex copies_mutex;
  mutable std::map<const TensorInfo*, std::vector<std::byte>> copies;
  MakeTensor make;  // where tensors are made rather than read: they live in copies
  Fp8Tensors fp8;   // those that are made of two of the file's; they too live in copies
  mutable std::unique_ptr<ThreadPool> pool;  // of large ones

  std::span<const std::byte> in_file(const TensorInfo& tensor) const;

  void open_weights(const Listing& listing);
  void join_weights(const ModelOpenOptions& options);
  void open_directory(const ModelOpenOptions& options);
  void read_configuration();
};

void ModelFiles::Data::read_configuration() {
  config = read_object(path / "config.json", kMaxConfigBytes);
  generation_config = read_object(path / "generation_config.json", kMaxConfigBytes);
  tokenizer_config = read_object(path / "tokenizer_config.json", kMaxConfigBytes);
  const Json special_tokens = read_object(path / "special_tokens_map.json", kMaxConfigBytes);
  if (!special_tokens.is_object()) return;
  if (tokenizer_config.is_null()) tokenizer_config = Json::object();
  for (const auto& [name, token] : special_tokens.items()) {
    if (!tokenizer_config.contains(name)) tokenizer_config[name] = token;
  }
}

// The index, else model.safetensors, else the only .safetensors file.
// Types that nothing computes with are listed: scales may be of one.
void ModelFiles::Data::open_weights(const Listing& listing) {
  constexpr TypePolicy kList = TypePolicy::kListUnsupported;
  const fs::path index = path / "model.safetensors.index.json";
  if (is_there(index)) {
    safetensors = open_safetensors_index(index, kList);
  } else if (is_there(path / "model.safetensors")) {
    safetensors = open_safetensors(path / "model.safetensors", kList);
  } else if (listing.safetensors.size() == 1) {
    safetensors = open_safetensors(path / listing.safetensors.front(), kList);
  } else {
    throw_error(ErrorKind::kInvalidInput,
                "{}: holds {} .safetensors files ({}), but neither model.safetensors.index.json nor "
                "model.safetensors",
                path.string(), listing.safetensors.size(), join_some(listing.safetensors));
  }
}

void ModelFiles::Data::join_weights(const ModelOpenOptions& options) {
  fp8 = Fp8Tensors::join(safetensors.tensors, config, path.string(),
                         options.fp8_as_floats ? Fp8Tensors::As::kFloats : Fp8Tensors::As::kBlocks);
  for (const TensorInfo& tensor : safetensors.tensors) {
    if (tensor.unsupported.empty()) continue;
    throw_error(ErrorKind::kUnsupported, "{}: tensor {}: element type {} is not supported; {}",
                safetensors.files[tensor.file].path().string(), quote_text(tensor.name), tensor.unsupported,
                kReadableWeights);
  }
}

void ModelFiles::Data::open_directory(const ModelOpenOptions& options) {
  const TypePolicy policy =
      options.need_usable ? TypePolicy::kRefuseUnsupported : TypePolicy::kListUnsupported;
  const Listing listing = list_directory(path);
  const bool has_config = is_there(path / "config.json");
  const bool has_tokenizer = is_there(path / "tokenizer.json") || is_there(path / "tokenizer_config.json");
  const bool has_weights = !listing.safetensors.empty() || is_there(path / "model.safetensors.index.json");
  if (has_config && has_weights) {
    kind = Kind::kHuggingFace;
    read_configuration();
    open_weights(listing);
  } else if (listing.gguf_models.size() == 1) {
    kind = Kind::kGguf;
    gguf = GgufFile::open(path / listing.gguf_models.front(), policy);
  } else if (listing.gguf_models.size() > 1) {
    throw_error(ErrorKind::kInvalidInput, "{}: holds {} GGUF models, name one of them: {}", path.string(),
                listing.gguf_models.size(), join_some(listing.gguf_models));
  } else if (!options.need_weights && (has_config || has_tokenizer)) {
    kind = Kind::kHuggingFace;
    read_configuration();
  } else if (listing.has_pickle && !has_weights) {
    throw_error(ErrorKind::kUnsupported,
                "{}: its weights are PyTorch pickles (.bin, .pt), which may run code when read; safetensors "
                "are needed. "
                "To convert: python -c \"import sys; from transformers import AutoModelForCausalLM as M; "
                "M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])\" OLD NEW",
                path.string());
  } else if (has_weights) {
    throw_error(ErrorKind::kNotFound, "{}: holds .safetensors files but no config.json", path.string());
  } else {
    throw_error(
        ErrorKind::kNotFound,
        "{}: no model in this directory: looked for a .gguf file, or config.json with model.safetensors or "
        "model.safetensors.index.json",
        path.string());
  }
}

std::shared_ptr<ModelFiles> ModelFiles::open(const fs::path& path, const ModelOpenOptions& options) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  auto data = std::make_unique<Data>();
  data->path = path;
  if (status.type() == fs::file_type::not_found) {
    throw_error(ErrorKind::kNotFound, "{}: no such file or directory", path.string());
  }
  if (status.type() == fs::file_type::none)
    throw_error(ErrorKind::kIo, "{}: {}", path.string(), error.message());
  const TypePolicy policy =
      options.need_usable ? TypePolicy::kRefuseUnsupported : TypePolicy::kListUnsupported;
  if (fs::is_directory(status)) {
    data->open_directory(options);
  } else if (path.extension() == ".safetensors" && !options.need_usable) {
    data->kind = Kind::kHuggingFace;
    data->safetensors = open_safetensors(path, policy);
  } else if (path.extension() == ".safetensors") {
    throw_error(
        ErrorKind::kInvalidInput,
        "{}: weights alone are no model: name the directory that also holds config.json and tokenizer.json",
        path.string());
  } else if (path.extension() == ".json" && !options.need_weights) {
    data->kind = Kind::kHuggingFace;
    const std::shared_ptr<ModelFiles> tokenizer(new ModelFiles(std::move(data)));
    if (!tokenizer->tokenizer_json().contains("model"))
      throw_error(ErrorKind::kInvalidInput, "{}: no tokenizer.json: it has no \"model\"", path.string());
    return tokenizer;
  } else {
    data->gguf = GgufFile::open(path, policy);
  }
  if (options.need_usable) data->join_weights(options);
  return std::shared_ptr<ModelFiles>(new ModelFiles(std::move(data)));
}

std::span<const std::byte> ModelFiles::Data::in_file(const TensorInfo& tensor) const {
  const std::vector<MappedFile>& files = kind == Kind::kGguf ? gguf->files() : safetensors.files;
  return files[tensor.file].bytes().subspan(tensor.offset, tensor.bytes);
}

ModelFiles::ModelFiles(std::unique_ptr<Data> data)
    : kind_(data->kind), path_(data->path), data_(std::move(data)) {
  tensors_ = kind_ == Kind::kGguf ? data_->gguf->tensors() : data_->safetensors.tensors;
  index_tensors();
}

std::shared_ptr<ModelFiles> ModelFiles::open_with_made_tensors(const fs::path& path,
                                                               std::vector<TensorInfo> tensors,
                                                               MakeTensor make) {
  std::shared_ptr<ModelFiles> files = open(path, {.need_weights = false});
  QIAO_ASSERT(files->tensors_.empty());
  files->tensors_ = std::move(tensors);
  files->data_->make = std::move(make);
  files->index_tensors();
  return files;
}

void ModelFiles::index_tensors() {
  index_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

ModelFiles::~ModelFiles() = default;

const TensorInfo* ModelFiles::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

bool ModelFiles::is_fp8(const TensorInfo& tensor) const { return data_->fp8.find(tensor.name) != nullptr; }

const std::vector<MappedFile>& ModelFiles::files() const {
  return kind_ == Kind::kGguf ? data_->gguf->files() : data_->safetensors.files;
}

std::span<const std::byte> ModelFiles::bytes(const TensorInfo& tensor) const {
  if (data_->make) {
    const std::lock_guard lock(data_->copies_mutex);
    std::vector<std::byte>& made = data_->copies[find(tensor.name)];
    if (made.empty()) {
      std::vector<std::byte> bytes(tensor.bytes);  // none are kept where that throws
      data_->make(tensor, bytes);
      made = std::move(bytes);
    }
    return made;
  }
  if (!tensor.unsupported.empty()) {
    throw_error(ErrorKind::kUnsupported, "{}: tensor {}: element type {} is not supported",
                files()[tensor.file].path().string(), quote_text(tensor.name), tensor.unsupported);
  }
  if (const Fp8Tensors::Source* source = data_->fp8.find(tensor.name)) {
    const std::lock_guard lock(data_->copies_mutex);
    std::vector<std::byte>& made = data_->copies[find(tensor.name)];
    if (made.empty()) {
      std::vector<std::byte> bytes(tensor.bytes);
      constexpr uint64_t kLarge = uint64_t{1} << 20;  // elements from which threads gain anything
      const bool large = source->numbers.bytes >= kLarge;
      if (large && !data_->pool) data_->pool = std::make_unique<ThreadPool>(0);
      data_->fp8.make(*source, tensor.dtype, data_->in_file(source->numbers), data_->in_file(source->scales),
                      bytes, large ? data_->pool.get() : nullptr);
      made = std::move(bytes);
    }
    return made;
  }
  const std::span<const std::byte> mapped = data_->in_file(tensor);
  const DTypeTraits& type = traits(tensor.dtype);
  // Blocks begin with 16-bit scales at most; GGUF's own alignment covers them.
  const auto alignment = static_cast<uintptr_t>(type.quantized ? 2 : type.block_bytes);
  if (reinterpret_cast<uintptr_t>(mapped.data()) % alignment == 0) return mapped;
  const std::lock_guard lock(data_->copies_mutex);
  std::vector<std::byte>& copy = data_->copies[find(tensor.name)];
  if (copy.empty()) copy.assign(mapped.begin(), mapped.end());
  return copy;
}

void ModelFiles::will_need(const TensorInfo& tensor) const {
  if (data_->make) return;
  const Fp8Tensors::Source* source = data_->fp8.find(tensor.name);
  const TensorInfo& lying = source == nullptr ? tensor : source->numbers;
  files()[lying.file].will_need(lying.offset, lying.bytes);
}

void ModelFiles::release(const TensorInfo& tensor) const {
  if (!data_->make) {
    const Fp8Tensors::Source* source = data_->fp8.find(tensor.name);
    const TensorInfo& lying = source == nullptr ? tensor : source->numbers;
    files()[lying.file].release(lying.offset, lying.bytes);
  }
  const std::lock_guard lock(data_->copies_mutex);
  data_->copies.erase(find(tensor.name));
}

uint64_t ModelFiles::weight_bytes() const {
  uint64_t total = 0;
  for (const TensorInfo& tensor : tensors_) total += tensor.bytes;
  return total;
}

const GgufMetadata& ModelFiles::metadata() const {
  QIAO_ASSERT(kind_ == Kind::kGguf);
  return data_->gguf->metadata();
}

uint32_t ModelFiles::gguf_version() const {
  QIAO_ASSERT(kind_ == Kind::kGguf);
  return data_->gguf->version();
}

const Json& ModelFiles::config() const {
  QIAO_ASSERT(kind_ == Kind::kHuggingFace);
  return data_->config;
}

const Json& ModelFiles::generation_config() const {
  QIAO_ASSERT(kind_ == Kind::kHuggingFace);
  return data_->generation_config;
}

const Json& ModelFiles::tokenizer_json() const {
  QIAO_ASSERT(kind_ == Kind::kHuggingFace);
  std::call_once(data_->tokenizer_once, [&] {
    const fs::path file = fs::is_directory(path_) ? path_ / "tokenizer.json" : path_;
    if (file.extension() == ".json") data_->tokenizer_json = read_object(file, kMaxTokenizerBytes);
  });
  return data_->tokenizer_json;
}

const Json& ModelFiles::tokenizer_config() const {
  QIAO_ASSERT(kind_ == Kind::kHuggingFace);
  return data_->tokenizer_config;
}

std::string ModelFiles::chat_template(std::string_view name) const {
  const bool is_default = name.empty() || name == "default";
  if (kind_ == Kind::kGguf) {
    const std::string* text = metadata().find_string(
        is_default ? "tokenizer.chat_template" : fmt::format("tokenizer.chat_template.{}", name));
    return text == nullptr ? std::string() : *text;
  }
  const bool plain = name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
  const fs::path file = is_default ? path_ / "chat_template.jinja"
                                   : path_ / "additional_chat_templates" / fmt::format("{}.jinja", name);
  if (plain && is_there(file)) return read_regular_file(file, kMaxTemplateBytes);
  const fs::path json = path_ / "chat_template.json";
  if (const auto text = template_in(read_object(json, kMaxTemplateBytes), name, json)) return *text;
  return template_in(tokenizer_config(), name, path_ / "tokenizer_config.json").value_or("");
}

}  // namespace qiao
