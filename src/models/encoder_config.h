// What varies between the encoders that the one encoder runs (BERT kinds), and what follows their last layer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "backend/ops/common.h"
#include "formats/model_files.h"

namespace qiao {

struct EncoderConfig {
  std::string architecture;          // "bert", "xlm-roberta"…: for people, never branched on
  int64_t vocabulary_size = 0;       // V
  int64_t hidden_size = 0;           // C
  int64_t intermediate_size = 0;     // F
  int64_t num_hidden_layers = 0;     // L
  int64_t num_attention_heads = 0;   // H
  int64_t position_rows = 0;         // of the position table
  int64_t position_offset = 0;       // the row of a sequence's first token (RoBERTa: padding_idx + 1)
  int64_t type_vocabulary_size = 0;  // 0: no token types
  int64_t relative_buckets = 0;  // of distances between tokens, each with a bias of scores (MPNet); 0: none
  float layer_norm_eps = 1e-12f;
  Activation hidden_act = Activation::kGelu;
  int64_t num_labels = 0;  // of a classification head, 0: none

  int64_t max_positions() const { return position_rows - position_offset; }  // tokens of a sequence
};

// Stems of tensors, before ".weight" or ".bias"; `{}` is the layer's index. Empty: there is none.
struct EncoderNames {
  std::string_view words, positions, types, embedding_norm, relative;
  std::string_view layers;  // what all of a layer's stems begin with
  std::string_view q, k, v, attention_output, attention_norm, up, down, output_norm;
};

enum class HeadActivation : uint8_t { kNone, kTanh, kGelu, kRelu };

struct EncoderFamily {
  std::string_view name;  // model_type, or GGUF's general.architecture
  bool gguf;
  EncoderNames names;
  std::string_view prefixes[2];              // what may stand before stems: of the model beneath a head
  std::string_view head_dense, head_output;  // stems of the classification head, without prefix
  HeadActivation head_activation;            // after head_dense
  bool offset_positions;                     // by the padding token's id + 1
  double layer_norm_eps;                     // where config.json does not say
};

// The family of an encoder; nullptr where the model is none (a decoder, or unknown).
const EncoderFamily* find_encoder_family(const ModelFiles& files);
inline bool is_encoder(const ModelFiles& files) { return find_encoder_family(files) != nullptr; }

// Throws Error(kInvalidInput / kUnsupported) naming the file and the key.
EncoderConfig read_encoder_config(const ModelFiles& files);

}  // namespace qiao
