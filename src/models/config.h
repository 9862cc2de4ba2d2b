// What varies between the language-model families that the one decoder runs. Read from GGUF metadata or a
// Hugging Face config.json by a family's mapping (models/families.cc); the decoder never asks for a family's
// name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/ops/common.h"
#include "backend/ops/moe.h"
#include "backend/ops/rope.h"
#include "formats/model_files.h"

namespace qiao {

// Frequencies of one rotary embedding, every scaling applied (models/rope_frequencies.cc).
struct RopeTable {
  std::vector<float> inverse_frequencies;  // R / 2
  float scale = 1.0f;                      // attention factor of YaRN and LongRoPE
};

struct DecoderConfig {
  std::string architecture;             // "llama", "qwen2"…: for people, never branched on
  int64_t vocabulary_size = 0;          // V
  int64_t hidden_size = 0;              // C
  int64_t intermediate_size = 0;        // F of dense layers
  int64_t num_hidden_layers = 0;        // L
  int64_t num_attention_heads = 0;      // H
  int64_t num_key_value_heads = 0;      // G
  int64_t head_dim = 0;                 // D
  int64_t max_position_embeddings = 0;  // the context it was trained for
  float rms_norm_eps = 1e-6f;
  float gamma_offset = 0.0f;  // 1 for Gemma's Hugging Face files
  Activation hidden_act = Activation::kSilu;
  float embedding_scale = 1.0f;
  bool tie_word_embeddings = false;

  // Attention.
  float attention_scale = 0.0f;          // usually 1 / sqrt(D)
  float attn_logit_softcapping = 0.0f;   // 0: none
  float final_logit_softcapping = 0.0f;  // 0: none
  bool attention_bias = false;           // of q, k, v
  bool attention_output_bias = false;
  bool mlp_bias = false;
  enum class QkNorm : uint8_t { kNone, kBeforeRope, kAfterRope };  // per head, over D
  QkNorm qk_norm = QkNorm::kNone;
  Rope::Layout rope_layout = Rope::Layout::kHalf;
  RopeTable rope;                  // of global layers
  RopeTable rope_local;            // of sliding layers; empty: as rope
  int64_t sliding_window = 0;      // 0: none
  std::vector<bool> layer_slides;  // L entries
  std::vector<bool> layer_ropes;   // L entries; false: no rotary embedding (SmolLM3)

  // Norm placement: before each block always; Gemma 2 and 3 also after it.
  bool post_norms = false;

  // Mixture of experts; num_experts 0: dense everywhere.
  int64_t num_experts = 0;          // E
  int64_t num_experts_per_tok = 0;  // k
  double router_aux_loss_coef = 0;  // weight in training of what evens out the experts' loads; 0: none
  int64_t moe_intermediate_size = 0;
  int64_t shared_intermediate_size = 0;  // of the always-on expert; 0: none
  bool norm_topk_prob = false;
  MoeRoute::Kind router = MoeRoute::Kind::kSoftmax;
  float router_scale = 1.0f;
  std::vector<bool> layer_is_moe;  // L entries
};

// Throws Error(kInvalidInput) naming file and key for a missing, mistyped or absurd value (all are bounded
// before any allocation), Error(kUnsupported) naming the architecture, with the list of those supported.
// `context` is the context length that will be used (0: the model's own); LongRoPE picks its table by it.
DecoderConfig read_decoder_config(const ModelFiles& files, int64_t context = 0);

}  // namespace qiao
