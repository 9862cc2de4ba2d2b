// The table of families: which files each reads, how its configuration maps to DecoderConfig, and its
// tensors' names. A new family is an entry in families.cc.
#pragma once

#include <span>
#include <string_view>

#include "models/config.h"
#include "models/config_reader.h"
#include "models/tensor_names.h"

namespace qiao {

struct Family {
  // Values of config.json that Transformers fills in where they are absent; 0: none, they must be there.
  struct Defaults {
    int64_t vocabulary_size = 0, attention_heads = 0, key_value_heads = 0, head_dim = 0,
            max_position_embeddings = 0;
    double rms_norm_eps = 0, rope_theta = 10000.0, local_rope_theta = 0;  // local 0: as global
    // Also what GGUF files mean. Gemma's first files say "gelu" under hidden_act and mean the tanh form.
    std::string_view activation_key = "hidden_act", activation = "silu";
    bool tied = false;  // embeddings; where config.json does not say and an output matrix is there
    bool yarn_is_longrope = false;  // Phi-3's first files
    bool partial_rotary = false;    // reads partial_rotary_factor, which Transformers' other families ignore
    bool fused = false;             // Transformers has q, k, v in one tensor, and gate and up
  };
  std::string_view name;                           // for people
  std::span<const std::string_view> hugging_face;  // model_type
  std::span<const std::string_view> gguf;          // general.architecture
  TensorNames hugging_face_names, gguf_names;
  Rope::Layout gguf_rope = Rope::Layout::kHalf;  // "llama" files have query and key rows permuted for pairs
  Defaults defaults;
  // Fills what the common mapping (config.cc) does not.
  void (*configure)(const ConfigReader& reader, DecoderConfig& config);

  const TensorNames& names(bool gguf_file) const { return gguf_file ? gguf_names : hugging_face_names; }
};

// Throws Error(kUnsupported) listing the supported ones.
const Family& find_family(const ConfigReader& reader);

// The family whose GGUF files name this architecture; null: none.
const Family* find_gguf_family(std::string_view architecture);

// Bounds of what a configuration may say, far above any published model.
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxWidth = int64_t{1} << 20;  // of hidden_size and an expert's or layer's F
inline constexpr int64_t kMaxHeads = int64_t{1} << 14;
inline constexpr int64_t kMaxHeadDim = int64_t{1} << 13;
inline constexpr int64_t kMaxExperts = int64_t{1} << 14;
inline constexpr int64_t kMaxVocabulary = int64_t{1} << 26;
inline constexpr int64_t kMaxPositions = int64_t{1} << 30;

}  // namespace qiao
