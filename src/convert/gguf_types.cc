#include "convert/gguf_types.h"

#include "tensor/floats.h"

namespace qiao::convert {
namespace {

// The first and last eighth of the layers, and each third between.
bool uses_more_bits(int64_t layer, int64_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

// For rows that are no whole number of blocks.
DType fallback(DType dtype, int64_t columns) {
  const auto fits = [&](DType each) { return columns % traits(each).block_elements == 0; };
  if (fits(dtype)) return dtype;
  DType smaller = dtype;
  if (dtype == DType::kQ4_K) smaller = DType::kQ5_0;
  if (dtype == DType::kQ5_K) smaller = DType::kQ5_1;
  if (dtype == DType::kQ6_K) smaller = DType::kQ8_0;
  return fits(smaller) ? smaller : DType::kF16;
}

}  // namespace

const std::vector<GgufKind>& gguf_kind_table() {
  static const std::vector<GgufKind> table = {{"F32", DType::kF32, 0},    {"F16", DType::kF16, 1},
                                              {"BF16", DType::kBF16, 32}, {"Q8_0", DType::kQ8_0, 7},
                                              {"Q4_0", DType::kQ4_0, 2},  {"Q4_K_M", DType::kQ4_K, 15, true}};
  return table;
}

DType gguf_tensor_dtype(const GgufKind& kind, const DecoderConfig& config, std::string_view name,
                        int64_t layer, const std::vector<int64_t>& shape) {
  if (shape.size() < 2) return DType::kF32;
  if (is_dense_float(kind.dtype)) return kind.dtype;
  const int64_t columns = shape.back();
  DType dtype = kind.dtype;
  const bool is_head = name == "output.weight" || (config.tie_word_embeddings && name == "token_embd.weight");
  if (is_head) {
    if (columns % traits(dtype).block_elements != 0) {
      dtype = DType::kQ8_0;
    } else if (dtype != DType::kQ8_0) {
      dtype = DType::kQ6_K;
    }
  } else if (kind.mixed) {
    const bool more = layer >= 0 && uses_more_bits(layer, config.num_hidden_layers);
    if (name.ends_with("attn_v.weight")) {
      // 80 layers whose heads share values: so much smaller than the others that more bits cost nothing.
      const bool is_70b =
          config.num_hidden_layers == 80 && config.num_key_value_heads < config.num_attention_heads;
      dtype = more ? DType::kQ6_K : is_70b ? DType::kQ5_K : dtype;
    } else if (name.ends_with("ffn_down.weight") && more) {
      dtype = DType::kQ6_K;
    } else if (name.ends_with("attn_qkv.weight")) {
      dtype = DType::kQ5_K;
    }
  }
  return fallback(dtype, columns);
}

}  // namespace qiao::convert
