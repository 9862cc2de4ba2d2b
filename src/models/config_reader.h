// Typed, bounded reads of a model's configuration, from GGUF metadata or a Hugging Face config.json: one
// mapping code for both.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/model_files.h"

namespace qiao {

// The two names of one value. Empty: that format does not have it. A GGUF name stands without its
// architecture prefix: "embedding_length".
struct ConfigKey {
  std::string_view hf, gguf;
};

// `find_*` give nothing where the key is absent (or null in JSON); a value of another type, not finite or out
// of [low, high] throws Error(kInvalidInput) naming file, key and what was expected. The others throw also
// where the key is absent.
class ConfigReader {
 public:
  // Reads architecture names. The language model's part of a multimodal config.json ("text_config") is what
  // is read where there is one.
  explicit ConfigReader(const ModelFiles& files);

  bool gguf() const { return files_->kind() == ModelFiles::Kind::kGguf; }
  const ModelFiles& files() const { return *files_; }
  const std::string& source() const { return source_; }  // the file, for messages
  // GGUF: general.architecture. Hugging Face: model_type of what is read.
  const std::string& architecture() const { return architecture_; }
  std::string name(ConfigKey key) const;  // as the file has it
  bool has_null(ConfigKey key) const;     // JSON's null stands there

  std::optional<int64_t> find_integer(ConfigKey key, int64_t low, int64_t high) const;
  int64_t integer(ConfigKey key, int64_t low, int64_t high) const;
  std::optional<double> find_number(ConfigKey key, double low, double high) const;
  double number(ConfigKey key, double low, double high) const;
  std::optional<bool> find_flag(ConfigKey key) const;
  std::optional<std::string> find_string(ConfigKey key) const;
  std::optional<std::vector<std::string>> find_strings(ConfigKey key) const;
  std::optional<std::vector<double>> find_numbers(ConfigKey key, double low, double high) const;
  // GGUF's list of a flag for each of `layers`; nothing where the key is absent or holds a single value.
  std::optional<std::vector<bool>> find_layer_flags(ConfigKey key, int64_t layers) const;
  // An integer, or a list of one that all layers share (Hunyuan writes lists).
  std::optional<int64_t> find_shared_integer(ConfigKey key, int64_t low, int64_t high) const;

  // A reader of the object at `key` of a config.json; nothing where absent. GGUF has none.
  std::optional<ConfigReader> find_object(std::string_view hf) const;

  [[noreturn]] void refuse(ConfigKey key, std::string_view value, std::string_view expected) const;
  [[noreturn]] void refuse_missing(ConfigKey key) const;

 private:
  ConfigReader(const ConfigReader& parent, const Json* json, std::string path);
  const Json* find(ConfigKey key) const;  // Hugging Face only; nullptr where absent or null
  std::string gguf_name(ConfigKey key) const;
  bool holds_list(ConfigKey key) const;

  const ModelFiles* files_;
  std::string source_, architecture_;
  const Json* json_ = nullptr;
  std::string path_;  // of json_ inside config.json: "text_config."
};

}  // namespace qiao
