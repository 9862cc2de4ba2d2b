#include "models/families.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/quote.h"
#include "models/encoder_config.h"

namespace qiao {
namespace {

constexpr TensorNames kGgufNames = {
    .embedding = "token_embd",
    .output = "output",
    .final_norm = "output_norm",
    .attention_norm = "blk.{}.attn_norm",
    .q = "blk.{}.attn_q",
    .k = "blk.{}.attn_k",
    .v = "blk.{}.attn_v",
    .qkv = "blk.{}.attn_qkv",
    .attention_output = "blk.{}.attn_output",
    .q_norm = "blk.{}.attn_q_norm",
    .k_norm = "blk.{}.attn_k_norm",
    .post_attention_norm = "blk.{}.post_attention_norm",
    .ffn_norm = "blk.{}.ffn_norm",
    .gate = "blk.{}.ffn_gate",
    .up = "blk.{}.ffn_up",
    .gate_up = "",
    .down = "blk.{}.ffn_down",
    .post_ffn_norm = "blk.{}.post_ffw_norm",
    .router = "blk.{}.ffn_gate_inp",
    .experts_gate = "blk.{}.ffn_gate_exps",
    .experts_up = "blk.{}.ffn_up_exps",
    .experts_gate_up = "blk.{}.ffn_gate_up_exps",
    .experts_down = "blk.{}.ffn_down_exps",
    .expert_gate = "",
    .expert_up = "",
    .expert_down = "",
    .shared_gate = "blk.{}.ffn_gate_shexp",
    .shared_up = "blk.{}.ffn_up_shexp",
    .shared_down = "blk.{}.ffn_down_shexp",
};

constexpr TensorNames kHuggingFaceNames = {
    .embedding = "embed_tokens",
    .output = "lm_head",
    .final_norm = "norm",
    .attention_norm = "layers.{}.input_layernorm",
    .q = "layers.{}.self_attn.q_proj",
    .k = "layers.{}.self_attn.k_proj",
    .v = "layers.{}.self_attn.v_proj",
    .qkv = "layers.{}.self_attn.qkv_proj",
    .attention_output = "layers.{}.self_attn.o_proj",
    .q_norm = "layers.{}.self_attn.q_norm",
    .k_norm = "layers.{}.self_attn.k_norm",
    .post_attention_norm = "",
    .ffn_norm = "layers.{}.post_attention_layernorm",
    .gate = "layers.{}.mlp.gate_proj",
    .up = "layers.{}.mlp.up_proj",
    .gate_up = "layers.{}.mlp.gate_up_proj",
    .down = "layers.{}.mlp.down_proj",
    .post_ffn_norm = "",
    .router = "layers.{}.mlp.gate",
    .experts_gate = "",
    .experts_up = "",
    .experts_gate_up = "layers.{}.mlp.experts.gate_up_proj",
    .experts_down = "layers.{}.mlp.experts.down_proj",
    .expert_gate = "layers.{}.mlp.experts.{}.gate_proj",
    .expert_up = "layers.{}.mlp.experts.{}.up_proj",
    .expert_down = "layers.{}.mlp.experts.{}.down_proj",
    .shared_gate = "layers.{}.mlp.shared_mlp.gate_proj",
    .shared_up = "layers.{}.mlp.shared_mlp.up_proj",
    .shared_down = "layers.{}.mlp.shared_mlp.down_proj",
};

constexpr TensorNames gemma_names() {
  TensorNames names = kHuggingFaceNames;
  names.post_attention_norm = "layers.{}.post_attention_layernorm";
  names.ffn_norm = "layers.{}.pre_feedforward_layernorm";
  names.post_ffn_norm = "layers.{}.post_feedforward_layernorm";
  return names;
}

constexpr TensorNames hunyuan_names() {
  TensorNames names = kHuggingFaceNames;
  names.q_norm = "layers.{}.self_attn.query_layernorm";
  names.k_norm = "layers.{}.self_attn.key_layernorm";
  names.router = "layers.{}.mlp.gate.wg";
  return names;
}

// Phi-3's GGUF keeps gate and up in one tensor under up's name.
constexpr TensorNames phi3_gguf_names() {
  TensorNames names = kGgufNames;
  names.gate_up = names.up;
  return names;
}

// Sets the window, and which layers slide: as `layer_types` or GGUF's pattern says (a flag for each layer, or
// a period whose last layer is global; 0: all slide), else slides(layer).
template <typename Slides>
void read_windows(const ConfigReader& reader, DecoderConfig& config, int64_t default_window, Slides slides) {
  const ConfigKey key = {"sliding_window", "attention.sliding_window"};
  const int64_t absent = reader.has_null(key) ? 0 : default_window;
  config.sliding_window = reader.find_integer(key, 0, kMaxPositions).value_or(absent);
  if (config.sliding_window == 0) return;
  const ConfigKey types = {"layer_types", ""};
  const auto written = reader.find_strings(types);
  if (written && static_cast<int64_t>(written->size()) != config.num_hidden_layers) {
    reader.refuse(types, fmt::format("a list of {}", written->size()),
                  fmt::format("one for each of the {} layers", config.num_hidden_layers));
  }
  const ConfigKey pattern = {"", "attention.sliding_window_pattern"};
  const auto flags = reader.find_layer_flags(pattern, config.num_hidden_layers);
  const int64_t period = flags ? -1 : reader.find_integer(pattern, 0, kMaxLayers).value_or(-1);  // -1: none
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    if (flags) {
      config.layer_slides[index] = (*flags)[index];
      continue;
    }
    if (!written) {
      config.layer_slides[index] = period < 0 ? slides(layer) : period == 0 || (layer + 1) % period != 0;
      continue;
    }
    const std::string& type = (*written)[index];
    if (type != "sliding_attention" && type != "full_attention") {
      throw_error(ErrorKind::kUnsupported, "{}: {}: layers of kind {} are not supported", reader.source(),
                  reader.name(types), quote_text(type));
    }
    config.layer_slides[index] = type == "sliding_attention";
  }
}

constexpr auto kAllSlide = [](int64_t) { return true; };

void read_biases(const ConfigReader& reader, DecoderConfig& config) {
  if (reader.gguf()) return;  // read from the tensors that are there
  config.attention_bias = reader.find_flag({"attention_bias", ""}).value_or(false);
  config.attention_output_bias = config.attention_bias;
}

void configure_llama(const ConfigReader& reader, DecoderConfig& config) {
  if (reader.find_integer({"num_local_experts", "expert_count"}, 0, kMaxExperts).value_or(0) > 0) {
    throw_error(ErrorKind::kUnsupported, "{}: {} with experts is not supported", reader.source(),
                reader.architecture());
  }
  read_biases(reader, config);
  config.mlp_bias = config.mlp_bias || reader.find_flag({"mlp_bias", ""}).value_or(false);
  const ConfigKey scale = {"", "attention.scale"};
  config.attention_scale =
      static_cast<float>(reader.find_number(scale, 1e-6, 1e6).value_or(config.attention_scale));
  if (reader.gguf()) read_windows(reader, config, 0, kAllSlide);  // Mistral's files are "llama" too
}

void configure_mistral(const ConfigReader& reader, DecoderConfig& config) {
  read_windows(reader, config, 4096, kAllSlide);
}

void configure_smollm3(const ConfigReader& reader, DecoderConfig& config) {
  configure_llama(reader, config);
  const auto uses_window = reader.find_flag({"use_sliding_window", ""});
  const int64_t interval = reader.find_integer({"no_rope_layer_interval", ""}, 1, kMaxLayers).value_or(4);
  const ConfigKey key = {"no_rope_layers", ""};
  const auto written = reader.find_numbers(key, 0, 1);  // 1: the layer has rotary embeddings
  if (written && static_cast<int64_t>(written->size()) != config.num_hidden_layers) {
    reader.refuse(key, fmt::format("a list of {}", written->size()),
                  fmt::format("one for each of the {} layers", config.num_hidden_layers));
  }
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    config.layer_ropes[index] = written ? (*written)[index] != 0 : (layer + 1) % interval != 0;
  }
  if (uses_window.value_or(false))
    read_windows(reader, config, 0,
                 [&](int64_t layer) { return !config.layer_ropes[static_cast<size_t>(layer)]; });
}

// Qwen 2 and 3: sliding only where it is switched on, from max_window_layers upwards.
void read_qwen_windows(const ConfigReader& reader, DecoderConfig& config, bool all_layers) {
  if (!reader.find_flag({"use_sliding_window", ""}).value_or(false)) return;
  const int64_t full_layers =
      all_layers ? 0 : reader.find_integer({"max_window_layers", ""}, 0, kMaxPositions).value_or(28);
  read_windows(reader, config, 4096, [&](int64_t layer) { return layer >= full_layers; });
}

void configure_qwen2(const ConfigReader& reader, DecoderConfig& config) {
  if (!reader.gguf()) config.attention_bias = true;
  read_qwen_windows(reader, config, false);
}

void configure_qwen3(const ConfigReader& reader, DecoderConfig& config) {
  read_biases(reader, config);
  config.qk_norm = DecoderConfig::QkNorm::kBeforeRope;
  read_qwen_windows(reader, config, false);
}

void read_experts(const ConfigReader& reader, DecoderConfig& config, ConfigKey per_token) {
  // Transformers writes it under its own name, published files under the family's.
  const auto own = reader.find_integer({"num_local_experts", ""}, 1, kMaxExperts);
  config.num_experts = own ? *own : reader.integer({"num_experts", "expert_count"}, 1, kMaxExperts);
  config.num_experts_per_tok = reader.find_shared_integer(per_token, 1, config.num_experts).value_or(0);
  if (config.num_experts_per_tok == 0) reader.refuse_missing(per_token);
  const ConfigKey width = {"moe_intermediate_size", "expert_feed_forward_length"};
  config.moe_intermediate_size =
      reader.find_shared_integer(width, 1, kMaxWidth).value_or(config.intermediate_size);
  config.layer_is_moe.assign(config.layer_is_moe.size(), true);
}

void configure_qwen3_moe(const ConfigReader& reader, DecoderConfig& config) {
  read_biases(reader, config);
  config.qk_norm = DecoderConfig::QkNorm::kBeforeRope;
  read_qwen_windows(reader, config, true);
  read_experts(reader, config, {"num_experts_per_tok", "expert_used_count"});
  config.norm_topk_prob = reader.find_flag({"norm_topk_prob", ""}).value_or(reader.gguf());
  // As Transformers: the loss has the term where the routers' logits are asked for.
  if (reader.find_flag({"output_router_logits", ""}).value_or(false))
    config.router_aux_loss_coef = reader.find_number({"router_aux_loss_coef", ""}, 0, 1e6).value_or(0.001);
  const int64_t step = reader.find_integer({"decoder_sparse_step", ""}, 1, kMaxLayers).value_or(1);
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    config.layer_is_moe[static_cast<size_t>(layer)] = (layer + 1) % step == 0;
  const auto dense = reader.find_numbers({"mlp_only_layers", ""}, 0, static_cast<double>(kMaxLayers));
  for (const double layer : dense.value_or(std::vector<double>{})) {
    const auto index = static_cast<size_t>(layer);
    if (index < config.layer_is_moe.size()) config.layer_is_moe[index] = false;
  }
}

void read_gemma(const ConfigReader& reader, DecoderConfig& config) {
  read_biases(reader, config);
  config.post_norms = true;
  config.gamma_offset = reader.gguf() ? 0.0f : 1.0f;  // GGUF's norms have it added
  config.embedding_scale = std::sqrt(static_cast<float>(config.hidden_size));
  // GGUF does not carry it: each size but the largest has its head's width.
  const double scalar = reader.find_number({"query_pre_attn_scalar", ""}, 1e-3, 1e6).value_or(256.0);
  if (!reader.gguf()) config.attention_scale = static_cast<float>(1.0 / std::sqrt(scalar));
}

void scale_by_width(DecoderConfig& config) {
  const int64_t share = config.hidden_size / config.num_attention_heads;
  config.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(share)));
}

float read_cap(const ConfigReader& reader, ConfigKey key, double absent) {
  const auto written = reader.find_number(key, 0.0, 1e6);
  return static_cast<float>(written.value_or(reader.has_null(key) ? 0.0 : absent));
}

constexpr ConfigKey kAttentionCap = {"attn_logit_softcapping", "attn_logit_softcapping"};
constexpr ConfigKey kFinalCap = {"final_logit_softcapping", "final_logit_softcapping"};

void configure_gemma2(const ConfigReader& reader, DecoderConfig& config) {
  read_gemma(reader, config);
  if (reader.gguf() && config.num_hidden_layers == 46) scale_by_width(config);  // 27B
  config.attn_logit_softcapping = read_cap(reader, kAttentionCap, 50.0);
  config.final_logit_softcapping = read_cap(reader, kFinalCap, 30.0);
  read_windows(reader, config, 4096, [](int64_t layer) { return layer % 2 == 0; });
}

void configure_gemma3(const ConfigReader& reader, DecoderConfig& config) {
  if (reader.find_flag({"use_bidirectional_attention", ""}).value_or(false)) {
    throw_error(ErrorKind::kUnsupported, "{}: {}: only causal attention is supported", reader.source(),
                reader.name({"use_bidirectional_attention", ""}));
  }
  read_gemma(reader, config);
  if (reader.gguf() && config.num_hidden_layers == 62) scale_by_width(config);  // 27B
  config.qk_norm = DecoderConfig::QkNorm::kBeforeRope;
  config.attn_logit_softcapping = read_cap(reader, kAttentionCap, 0.0);
  config.final_logit_softcapping = read_cap(reader, kFinalCap, 0.0);
  const ConfigKey pattern = {"sliding_window_pattern", ""};
  const int64_t period = reader.find_integer(pattern, 1, kMaxLayers).value_or(6);
  read_windows(reader, config, reader.gguf() ? 0 : 4096,
               [&](int64_t layer) { return (layer + 1) % period != 0; });
}

void configure_phi3(const ConfigReader& reader, DecoderConfig& config) {
  read_windows(reader, config, 0, kAllSlide);
}

void configure_hunyuan_dense(const ConfigReader& reader, DecoderConfig& config) {
  read_biases(reader, config);
  if (reader.find_flag({"use_qk_norm", ""}).value_or(true))
    config.qk_norm = DecoderConfig::QkNorm::kAfterRope;
}

void configure_hunyuan_moe(const ConfigReader& reader, DecoderConfig& config) {
  configure_hunyuan_dense(reader, config);
  read_experts(reader, config, {"moe_topk", "expert_used_count"});
  config.norm_topk_prob = true;
  if (reader.gguf()) {
    const ConfigKey key = {"", "expert_shared_feed_forward_length"};
    config.shared_intermediate_size =
        reader.find_integer(key, 1, kMaxWidth).value_or(config.intermediate_size);
  } else {
    const int64_t count = reader.find_shared_integer({"num_shared_expert", ""}, 1, 64).value_or(1);
    config.shared_intermediate_size = config.intermediate_size * count;
  }
}

constexpr std::array<std::string_view, 1> kLlama = {"llama"}, kMistral = {"mistral"}, kSmolLm3 = {"smollm3"},
                                          kQwen2 = {"qwen2"}, kQwen3 = {"qwen3"}, kQwen3Moe = {"qwen3_moe"},
                                          kQwen3MoeGguf = {"qwen3moe"}, kGemma2 = {"gemma2"},
                                          kGemma3Gguf = {"gemma3"}, kPhi3 = {"phi3"},
                                          kHunyuanDense = {"hunyuan_v1_dense"},
                                          kHunyuanDenseGguf = {"hunyuan-dense"},
                                          kHunyuanMoe = {"hunyuan_v1_moe"}, kHunyuanMoeGguf = {"hunyuan-moe"};
constexpr std::array<std::string_view, 2> kGemma3 = {"gemma3_text", "gemma3"};

constexpr std::array kFamilies = {
    Family{"Llama",
           kLlama,
           kLlama,
           kHuggingFaceNames,
           kGgufNames,
           Rope::Layout::kInterleaved,
           {},
           configure_llama},
    Family{"Mistral",
           kMistral,
           {},
           kHuggingFaceNames,
           kGgufNames,
           Rope::Layout::kInterleaved,
           {},
           configure_mistral},
    Family{"SmolLM3",
           kSmolLm3,
           kSmolLm3,
           kHuggingFaceNames,
           kGgufNames,
           Rope::Layout::kInterleaved,
           {.rope_theta = 2000000.0},
           configure_smollm3},
    Family{"Qwen2", kQwen2, kQwen2, kHuggingFaceNames, kGgufNames, Rope::Layout::kHalf, {}, configure_qwen2},
    Family{"Qwen3", kQwen3, kQwen3, kHuggingFaceNames, kGgufNames, Rope::Layout::kHalf, {}, configure_qwen3},
    Family{"Qwen3 MoE",
           kQwen3Moe,
           kQwen3MoeGguf,
           kHuggingFaceNames,
           kGgufNames,
           Rope::Layout::kHalf,
           {},
           configure_qwen3_moe},
    Family{"Gemma 2",
           kGemma2,
           kGemma2,
           gemma_names(),
           kGgufNames,
           Rope::Layout::kHalf,
           {.head_dim = 256,
            .max_position_embeddings = 8192,
            .rms_norm_eps = 1e-6,
            .activation_key = "hidden_activation",
            .activation = "gelu_pytorch_tanh",
            .tied = true},
           configure_gemma2},
    Family{"Gemma 3",
           kGemma3,
           kGemma3Gguf,
           gemma_names(),
           kGgufNames,
           Rope::Layout::kHalf,
           {.vocabulary_size = 262208,
            .attention_heads = 8,
            .key_value_heads = 4,
            .head_dim = 256,
            .max_position_embeddings = 131072,
            .rms_norm_eps = 1e-6,
            .rope_theta = 1000000.0,
            .local_rope_theta = 10000.0,
            .activation_key = "hidden_activation",
            .activation = "gelu_pytorch_tanh",
            .tied = true},
           configure_gemma3},
    Family{"Phi-3",
           kPhi3,
           kPhi3,
           kHuggingFaceNames,
           phi3_gguf_names(),
           Rope::Layout::kHalf,
           {.yarn_is_longrope = true, .partial_rotary = true, .fused = true},
           configure_phi3},
    Family{"Hunyuan",
           kHunyuanDense,
           kHunyuanDenseGguf,
           hunyuan_names(),
           kGgufNames,
           Rope::Layout::kHalf,
           {},
           configure_hunyuan_dense},
    Family{"Hunyuan MoE",
           kHunyuanMoe,
           kHunyuanMoeGguf,
           hunyuan_names(),
           kGgufNames,
           Rope::Layout::kHalf,
           {},
           configure_hunyuan_moe},
};

}  // namespace

const Family& find_family(const ConfigReader& reader) {
  std::string supported;
  for (const Family& family : kFamilies) {
    for (const std::string_view name : reader.gguf() ? family.gguf : family.hugging_face) {
      if (name == reader.architecture()) return family;
      supported += fmt::format("{}{}", supported.empty() ? "" : ", ", name);
    }
  }
  if (is_encoder(reader.files())) {
    throw_error(
        ErrorKind::kUnsupported,
        "{}: an embedding model ({}), which writes no text: `qiao serve` answers /v1/embeddings with it",
        reader.source(), reader.architecture());
  }
  throw_error(ErrorKind::kUnsupported, "{}: architecture {} is not supported; supported are: {}",
              reader.source(), quote_text(reader.architecture()), supported);
}

const Family* find_gguf_family(std::string_view architecture) {
  for (const Family& family : kFamilies) {
    if (std::ranges::find(family.gguf, architecture) != family.gguf.end()) return &family;
  }
  return nullptr;
}

}  // namespace qiao
