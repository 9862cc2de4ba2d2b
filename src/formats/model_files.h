// A model as it lies on disk, whichever the format: a GGUF file (or split set) or a Hugging Face directory.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "formats/gguf.h"

namespace qiao {

struct ModelOpenOptions {
  // false: a Hugging Face directory without weights will do (a tokenizer, a configuration), and a
  // tokenizer.json under any name ending in .json. A GGUF file may always come without tensors.
  bool need_weights = true;
  // false: tensors of element types that Qiao cannot compute with are listed (TensorInfo::unsupported)
  // instead of refused, and a lone .safetensors file opens; for inspection.
  bool need_usable = true;
  // FP8 tensors come as floats (Fp8Tensors::As::kFloats).
  bool fp8_as_floats = false;
};

// Reading is safe from any thread. Nothing here knows an architecture: names and metadata are the file's own,
// but that FP8 tensors stand with their scales as one (fp8_tensors.h), unless need_usable is false.
class ModelFiles {
 public:
  enum class Kind { kGguf, kHuggingFace };

  // A .gguf file, a directory with config.json, or a directory that holds exactly one GGUF model. Throws
  // Error(kNotFound) or Error(kInvalidInput) saying what was looked for.
  static std::shared_ptr<ModelFiles> open(const std::filesystem::path& path,
                                          const ModelOpenOptions& options = {});
  // A directory without weights (need_weights false), with `tensors` in their place: `make` fills in the
  // bytes of one whenever they are asked for and not there, until release().
  using MakeTensor = std::function<void(const TensorInfo& tensor, std::span<std::byte> bytes)>;
  static std::shared_ptr<ModelFiles> open_with_made_tensors(const std::filesystem::path& path,
                                                            std::vector<TensorInfo> tensors, MakeTensor make);
  virtual ~ModelFiles();

  Kind kind() const { return kind_; }
  const std::filesystem::path& path() const { return path_; }

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;  // nullptr where absent
  // Whether the files have it as E4M3 with scales, whatever it is here.
  bool is_fp8(const TensorInfo& tensor) const;
  // Aligned for the dtype's elements (a copy where the file has them at an odd address, until release()).
  // Throws Error(kUnsupported) for a tensor whose element type Qiao lacks.
  std::span<const std::byte> bytes(const TensorInfo& tensor) const;
  void will_need(const TensorInfo& tensor) const;  // hints, as MappedFile's
  void release(const TensorInfo& tensor) const;
  uint64_t weight_bytes() const;  // of all tensors
  const std::vector<MappedFile>& files() const;

  // GGUF only; an assertion otherwise.
  const GgufMetadata& metadata() const;
  uint32_t gguf_version() const;
  // Hugging Face only. Absent optional files give null Json; each that is there is an object.
  const Json& config() const;             // config.json
  const Json& generation_config() const;  // generation_config.json
  const Json& tokenizer_json() const;     // tokenizer.json, parsed on first use
  // tokenizer_config.json, with the tokens that only special_tokens_map.json names.
  const Json& tokenizer_config() const;
  // chat_template.jinja, else chat_template.json, else tokenizer_config.json's chat_template (a string, or
  // the entry "default" of a list), else GGUF's tokenizer.chat_template. Empty where there is none. `name`
  // selects a named one
  // ("tool_use").
  std::string chat_template(std::string_view name = {}) const;

 protected:
  struct Data;
  explicit ModelFiles(std::unique_ptr<Data> data);
  void index_tensors();
  Kind kind_ = Kind::kGguf;
  std::filesystem::path path_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, size_t> index_;
  std::unique_ptr<Data> data_;
};

}  // namespace qiao
