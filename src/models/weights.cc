#include "models/weights.h"

#include "models/families.h"
#include "models/tensor_loader.h"

namespace qiao {
namespace {

// Builds every layer; run twice, see TensorLoader.
class Builder {
 public:
  Builder(TensorLoader& loader, const TensorNames& names, const DecoderConfig& config, Backend* backend)
      : loader_(loader), names_(names), config_(config), backend_(backend) {}

  DecoderWeights build() {
    DecoderWeights weights;
    const int64_t vocabulary = config_.vocabulary_size, width = config_.hidden_size;
    auto table = loader_.pieces({loader_.segment(loader_.name(names_.embedding), vocabulary, width)}, 1,
                                width, Part::kOther);
    if (!loader_.checking()) {
      weights.embedding = {table.front().weight, config_.embedding_scale};
      weights.rotary = rotary(config_.rope);
      if (!config_.rope_local.inverse_frequencies.empty()) weights.local_rotary = rotary(config_.rope_local);
    }
    // The largest matrices first: while one is laid out its file pages are in memory too.
    if (config_.tie_word_embeddings) {
      weights.head.pieces = std::move(table);
    } else {
      weights.head = linear({{names_.output, vocabulary}}, 0, width, false, Part::kOther);
    }
    if (!loader_.checking()) loader_.will_need_layer(0);
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer)
      weights.layers.push_back(build_layer(layer, weights));
    weights.final_norm = norm(names_.final_norm, 0, width);
    weights.bytes = loader_.laid_out_bytes();
    return weights;
  }

 private:
  using Parts = std::vector<std::pair<std::string_view, int64_t>>;  // stem, rows
  using Part = TensorLoader::Part;

  std::unique_ptr<nn::RotaryTable> rotary(const RopeTable& table) {
    auto made = std::make_unique<nn::RotaryTable>();
    made->inverse_frequencies = nn::Parameter::upload(*backend_, table.inverse_frequencies);
    made->scale = table.scale;
    made->layout = config_.rope_layout;
    return made;
  }

  nn::RmsNormLayer norm(std::string_view stem, int64_t layer, int64_t count) {
    return {loader_.parameter(loader_.name(stem, layer), ".weight", count), config_.gamma_offset,
            config_.rms_norm_eps};
  }

  nn::LinearLayer linear(const Parts& parts, int64_t layer, int64_t columns, bool biased,
                         Part part = Part::kLayer) {
    std::vector<TensorLoader::Segment> segments;
    std::vector<std::pair<std::string, int64_t>> biases;
    for (const auto& [stem, rows] : parts) {
      const std::string name = loader_.name(stem, layer);
      segments.push_back(loader_.segment(name, rows, columns));
      biases.emplace_back(name, rows);
    }
    nn::LinearLayer made;
    made.pieces = loader_.pieces(segments, 1, columns, part);
    if (biased) made.bias = loader_.joined_parameter(biases, ".bias");
    return made;
  }

  // `fused` where the file has it, else `parts` of equal meaning.
  nn::LinearLayer fused_linear(std::string_view fused, const Parts& parts, int64_t layer, int64_t columns,
                               bool biased) {
    int64_t rows = 0;
    for (const auto& part : parts) rows += part.second;
    const std::string name = loader_.name(fused, layer);
    // A fused tensor may go by one part's name (Phi-3's ffn_up): then the other part is not there.
    const bool is_fused =
        !fused.empty() && loader_.has(name) &&
        (fused != parts.back().first || !loader_.has(loader_.name(parts.front().first, layer)));
    return is_fused ? linear({{fused, rows}}, layer, columns, biased) : linear(parts, layer, columns, biased);
  }

  nn::MlpLayer mlp(std::string_view fused, const Parts& gate_up, std::string_view down, int64_t layer,
                   bool biased) {
    const int64_t inner = gate_up.front().second;
    nn::MlpLayer made;
    made.gate_up = fused_linear(fused, gate_up, layer, config_.hidden_size, biased);
    made.down = linear({{down, config_.hidden_size}}, layer, inner, biased);
    made.activation = config_.hidden_act;
    return made;
  }

  nn::GroupedLinearLayer experts(std::string_view stacked_both, const Parts& stacked, const Parts& single,
                                 int64_t layer, int64_t columns) {
    const int64_t count = config_.num_experts;
    const auto there = [&](std::string_view stem) {
      const std::string name = loader_.name(stem, layer);
      return !stem.empty() && (loader_.has(name) || loader_.has(name, ""));
    };
    std::vector<TensorLoader::Segment> segments;
    if (there(stacked_both)) {
      int64_t rows = 0;
      for (const auto& part : stacked) rows += part.second;
      segments.push_back(loader_.stacked(loader_.name(stacked_both, layer), count, rows, columns));
    } else if (single.front().first.empty() || there(stacked.front().first)) {
      for (const auto& [stem, rows] : stacked)
        segments.push_back(loader_.stacked(loader_.name(stem, layer), count, rows, columns));
    } else {
      for (const auto& [stem, rows] : single) {
        TensorLoader::Segment segment{{}, rows};
        for (int64_t expert = 0; expert < count; ++expert)
          segment.tensors.push_back(
              loader_.segment(loader_.name(stem, layer, expert), rows, columns).tensors.front());
        segments.push_back(std::move(segment));
      }
    }
    return {loader_.pieces(segments, count, columns, Part::kLayer)};
  }

  nn::MoeLayer moe(int64_t layer) {
    const int64_t inner = config_.moe_intermediate_size, width = config_.hidden_size;
    nn::MoeLayer made;
    made.router = linear({{names_.router, config_.num_experts}}, layer, width, false, Part::kOther);
    made.gate_up = experts(names_.experts_gate_up, {{names_.experts_gate, inner}, {names_.experts_up, inner}},
                           {{names_.expert_gate, inner}, {names_.expert_up, inner}}, layer, width);
    made.down = experts("", {{names_.experts_down, width}}, {{names_.expert_down, width}}, layer, inner);
    if (const int64_t shared = config_.shared_intermediate_size; shared > 0) {
      made.shared = mlp("", {{names_.shared_gate, shared}, {names_.shared_up, shared}}, names_.shared_down,
                        layer, false);
    }
    made.experts = config_.num_experts;
    made.experts_per_token = config_.num_experts_per_tok;
    made.kind = config_.router;
    made.normalize = config_.norm_topk_prob;
    made.scale = config_.router_scale;
    made.activation = config_.hidden_act;
    return made;
  }

  nn::AttentionLayer attention(int64_t layer, const DecoderWeights& weights) {
    const int64_t dim = config_.head_dim, q = config_.num_attention_heads * dim,
                  kv = config_.num_key_value_heads * dim;
    const auto index = static_cast<size_t>(layer);
    const bool slides = config_.layer_slides[index];
    nn::AttentionLayer made;
    made.qkv = fused_linear(names_.qkv, {{names_.q, q}, {names_.k, kv}, {names_.v, kv}}, layer,
                            config_.hidden_size, config_.attention_bias);
    made.output =
        linear({{names_.attention_output, config_.hidden_size}}, layer, q, config_.attention_output_bias);
    using QkNorm = nn::AttentionLayer::QkNorm;
    if (config_.qk_norm != DecoderConfig::QkNorm::kNone) {
      const bool before = config_.qk_norm == DecoderConfig::QkNorm::kBeforeRope;
      made.qk_norm = before ? QkNorm::kBeforeRope : QkNorm::kAfterRope;
      made.q_norm = norm(names_.q_norm, layer, dim);
      made.k_norm = norm(names_.k_norm, layer, dim);
    }
    if (config_.layer_ropes[index])
      made.rotary = slides && weights.local_rotary ? weights.local_rotary.get() : weights.rotary.get();
    made.heads = config_.num_attention_heads;
    made.kv_heads = config_.num_key_value_heads;
    made.head_dim = dim;
    made.window = slides ? config_.sliding_window : 0;
    made.scale = config_.attention_scale;
    made.soft_cap = config_.attn_logit_softcapping;
    made.compute = loader_.attention_compute(made.qkv);
    return made;
  }

  DecoderLayer build_layer(int64_t layer, const DecoderWeights& weights) {
    if (!loader_.checking()) loader_.will_need_layer(layer + 1);
    const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
    DecoderLayer made;
    made.attention_norm = norm(names_.attention_norm, layer, width);
    made.attention = attention(layer, weights);
    made.ffn_norm = norm(names_.ffn_norm, layer, width);
    if (config_.post_norms) {
      made.post_attention_norm = norm(names_.post_attention_norm, layer, width);
      made.post_ffn_norm = norm(names_.post_ffn_norm, layer, width);
    }
    made.is_moe = config_.layer_is_moe[static_cast<size_t>(layer)];
    if (made.is_moe) {
      made.moe = moe(layer);
    } else {
      made.mlp = mlp(names_.gate_up, {{names_.gate, inner}, {names_.up, inner}}, names_.down, layer,
                     config_.mlp_bias);
    }
    return made;
  }

  TensorLoader& loader_;
  const TensorNames& names_;
  const DecoderConfig& config_;
  Backend* backend_;  // null: only checks
};

}  // namespace

DecoderWeights load_weights(const ModelFiles& files, Backend& backend, const DecoderConfig& config,
                            const DecoderOptions& options) {
  const bool gguf = files.kind() == ModelFiles::Kind::kGguf;
  const Family& family = find_family(ConfigReader(files));
  TensorLoader loader(files, backend, options);
  Builder builder(loader, family.names(gguf), config, &backend);
  builder.build();
  loader.refuse_unknown(config.num_hidden_layers);
  loader.start_loading();
  return builder.build();
}

std::vector<TensorInfo> list_weights(const ModelFiles& files, const DecoderConfig& config, DType dtype) {
  const Family& family = find_family(ConfigReader(files));
  TensorLoader::Listing listing = {.fused = family.defaults.fused, .dtype = dtype, .tensors = {}};
  TensorLoader loader(files, listing);
  Builder(loader, family.names(false), config, nullptr).build();
  return {listing.tensors.begin(), listing.tensors.end()};
}

}  // namespace qiao
