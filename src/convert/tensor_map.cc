#include "convert/tensor_map.h"

#include <fmt/format.h>

namespace qiao::convert {
namespace {

std::string filled(std::string_view stem, int64_t layer) {
  std::string name(stem);
  if (const size_t at = name.find("{}"); at != std::string::npos) name.replace(at, 2, fmt::to_string(layer));
  return name;
}

class PairList {
 public:
  PairList(const Family& family, const DecoderConfig& config, std::string_view root)
      : root_(root),
        pairs_rows_(family.gguf_rope == Rope::Layout::kInterleaved),
        is_gemma_(config.post_norms) {
    const TensorNames &gguf = family.gguf_names, &hf = family.hugging_face_names;
    const int64_t width = config.hidden_size, q = config.num_attention_heads * config.head_dim,
                  kv = config.num_key_value_heads * config.head_dim, inner = config.intermediate_size;
    matrix(gguf.embedding, hf.embedding, config.vocabulary_size, width, 0);
    matrix(gguf.output, hf.output, config.vocabulary_size, width, 0);
    norm(gguf.final_norm, hf.final_norm, width);
    for (layer_ = 0; layer_ < config.num_hidden_layers; ++layer_) {
      norm(gguf.attention_norm, hf.attention_norm, width);
      matrix(gguf.q, hf.q, q, width, q);
      matrix(gguf.k, hf.k, kv, width, kv);
      matrix(gguf.v, hf.v, kv, width, 0);
      matrix(gguf.qkv, hf.qkv, q + 2 * kv, width, q + kv);
      matrix(gguf.attention_output, hf.attention_output, width, q, 0);
      norm(gguf.q_norm, hf.q_norm, config.head_dim);
      norm(gguf.k_norm, hf.k_norm, config.head_dim);
      norm(gguf.post_attention_norm, hf.post_attention_norm, width);
      norm(gguf.ffn_norm, hf.ffn_norm, width);
      matrix(gguf.gate, hf.gate, inner, width, 0);
      matrix(gguf.up, hf.up, inner, width, 0);
      matrix(gguf.gate_up, hf.gate_up, 2 * inner, width, 0);
      matrix(gguf.down, hf.down, width, inner, 0);
      norm(gguf.post_ffn_norm, hf.post_ffn_norm, width);
    }
  }
  std::vector<TensorPair> take() { return std::move(list_); }

 private:
  void matrix(std::string_view gguf, std::string_view hf, int64_t rows, int64_t columns, int64_t rotary) {
    if (gguf.empty() || hf.empty()) return;
    const int64_t paired = pairs_rows_ ? rotary : 0;
    add(gguf, hf, ".weight", {rows, columns}, paired, 0.0f);
    add(gguf, hf, ".bias", {rows}, paired, 0.0f);
  }
  void norm(std::string_view gguf, std::string_view hf, int64_t count) {
    if (gguf.empty() || hf.empty()) return;
    add(gguf, hf, ".weight", {count}, 0, is_gemma_ ? 1.0f : 0.0f);
  }
  void add(std::string_view gguf, std::string_view hf, std::string_view suffix, std::vector<int64_t> shape,
           int64_t paired, float offset) {
    std::string_view root = root_;
    if (hf == "lm_head") root = root_ == "language_model.model." ? "language_model." : "";
    list_.push_back({fmt::format("{}{}", filled(gguf, layer_), suffix),
                     fmt::format("{}{}{}", root, filled(hf, layer_), suffix), std::move(shape), paired,
                     offset});
  }

  std::string_view root_;
  bool pairs_rows_, is_gemma_;
  int64_t layer_ = 0;
  std::vector<TensorPair> list_;
};

}  // namespace

std::vector<TensorPair> tensor_pairs(const Family& family, const DecoderConfig& config,
                                     std::string_view root) {
  return PairList(family, config, root).take();
}

}  // namespace qiao::convert
