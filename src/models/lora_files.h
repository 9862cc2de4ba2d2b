// A LoRA adapter (Hu et al. 2021) as it lies on disk: a directory of PEFT (adapter_config.json and
// adapter_model.safetensors), or a GGUF file of llama.cpp's convert_lora_to_gguf.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "formats/safetensors.h"

namespace qiao {

namespace tokenization {
class Regex;
}

// What PEFT's adapter_config.json says of an adapter that this engine can serve.
struct LoraConfig {
  int64_t rank = 0;
  double alpha = 0;
  bool rank_stabilized = false;  // scale alpha / sqrt(rank) in place of alpha / rank
  // By expressions that fit a module's name or its end behind a dot; the first that does.
  template <typename Value>
  struct Pattern {
    std::shared_ptr<const tokenization::Regex> modules;
    Value value;
  };
  std::vector<Pattern<int64_t>> rank_pattern;
  std::vector<Pattern<double>> alpha_pattern;
  std::vector<std::string> target_modules;   // empty: an expression, "all-linear", or not said
  std::vector<int64_t> layers_to_transform;  // empty: all

  // `module` is its name in the base model: "model.layers.0.self_attn.q_proj".
  int64_t rank_of(std::string_view module) const;
  double scale_of(std::string_view module, int64_t its_rank) const;
  bool targets(std::string_view module) const;

  std::string source;  // the file, for messages
};

// Parses an adapter_config.json. Throws Error(kInvalidInput) naming file and key for what is missing,
// mistyped or out of range, Error(kUnsupported) naming the key for what would change the answer and is not
// done here: other kinds than LoRA, DoRA, biases, modules_to_save, and keys that are not known.
LoraConfig parse_lora_config(std::string_view json, std::string_view source);

// One module's pair: y += scale * B (A x).
struct LoraPair {
  std::string module;                           // as the file names it, without the adapter's own prefix
  const TensorInfo *a = nullptr, *b = nullptr;  // [r, K] and [N, r], r the same, 1 or more
};

// A pair that is not in a file yet: A [rank, columns], B [rows, rank].
struct LoraValues {
  std::string module;
  int64_t rank = 0, rows = 0, columns = 0;
  std::vector<float> a, b;
};

// Reading is safe from any thread.
class LoraFiles {
 public:
  // Throws Error naming file, key or tensor: what was looked for, an A without its B, shapes that do not fit
  // each other, tensors that are no pair of LoRA.
  static std::unique_ptr<LoraFiles> open(const std::filesystem::path& path);

  // Of PEFT's kind, out of memory: what an adapter_config.json says and the matrices, in F32. `source` is for
  // messages.
  static std::unique_ptr<LoraFiles> of_values(std::string_view config, const std::vector<LoraValues>& values,
                                              std::string_view source);

  bool gguf() const { return gguf_ != nullptr; }
  const std::string& architecture() const { return architecture_; }  // GGUF: general.architecture
  const std::string& source() const { return source_; }              // the file of the tensors, for messages
  const std::vector<LoraPair>& pairs() const { return pairs_; }      // in the order of names
  std::span<const std::byte> bytes(const TensorInfo& tensor) const;
  std::vector<float> floats(const TensorInfo& tensor) const;
  // Of everything that answers depend on: differs where they may. Not against forgery.
  uint64_t fingerprint() const;
  // alpha / r, or as the configuration says. Checks the rank against it.
  double scale(const LoraPair& pair) const;

 private:
  LoraFiles() = default;
  void open_peft(const std::filesystem::path& directory);
  void open_gguf(const std::filesystem::path& file);
  void read_pairs(const std::vector<TensorInfo>& tensors);

  std::string source_, architecture_;
  LoraConfig config_;
  SafetensorsFiles safetensors_;
  std::vector<std::byte> memory_;  // in place of files
  std::shared_ptr<GgufFile> gguf_;
  double gguf_alpha_ = 0;
  std::vector<LoraPair> pairs_;
};

}  // namespace qiao
