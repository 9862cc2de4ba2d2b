#include "models/weights.h"

#include "models/families.h"
#include "models/shards.h"
#include "models/tensor_loader.h"
#include "parallel/communicator.h"

namespace qiao {
namespace {

// Builds every layer; run twice, see TensorLoader.
class Builder {
 public:
  Builder(TensorLoader& loader, const TensorNames& names, const DecoderConfig& config, const Shards& shards,
          Backend* backend, bool trains)
      : loader_(loader),
        names_(names),
        config_(config),
        shards_(shards),
        backend_(backend),
        trains_(trains) {}

  DecoderWeights build() {
    DecoderWeights weights;
    weights.shards = shards_;
    const int64_t vocabulary = config_.vocabulary_size, width = config_.hidden_size;
    auto table = loader_.pieces({loader_.segment(loader_.name(names_.embedding), vocabulary, width)}, 1,
                                width, Kind::kOther);
    if (!loader_.checking()) {
      weights.embedding = {table.front().weight, config_.embedding_scale};
      weights.rotary = rotary(config_.rope);
      if (!config_.rope_local.inverse_frequencies.empty()) weights.local_rotary = rotary(config_.rope_local);
    }
    // The largest matrices first: while one is laid out its file pages are in memory too.
    const bool whole_head = shards_.size == 1 || trains_;
    if (config_.tie_word_embeddings && whole_head) {
      weights.head.pieces = std::move(table);
      weights.embedding.learns = shards_.rank == 0;
    } else {
      const std::string_view stem = config_.tie_word_embeddings ? names_.embedding : names_.output;
      const Range rows = whole_head ? Range{0, vocabulary} : shards_.own_vocabulary();
      weights.head = linear({{stem, vocabulary, {rows}}}, 0, whole(width), false, Kind::kOther);
    }
    if (!whole_head)
      for (const Range& rows : shards_.vocabulary) weights.head_rows.push_back(rows.count);
    if (!loader_.checking()) loader_.will_need_layer(0);
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer)
      weights.layers.push_back(build_layer(layer, weights));
    weights.final_norm = norm(names_.final_norm, 0, width);
    if (trains_ && shards_.size > 1 && !loader_.checking()) list_summed(weights);
    weights.bytes = loader_.laid_out_bytes();
    return weights;
  }

 private:
  void list_summed(DecoderWeights& weights) const {
    const auto add = [&](const nn::LinearLayer& layer) {
      for (const nn::WeightPiece& piece : layer.pieces) weights.summed.push_back(piece.weight.get());
      if (layer.bias.tensor.present()) weights.summed.push_back(layer.bias.tensor.data);
    };
    add(weights.head);
    for (const DecoderLayer& layer : weights.layers) {
      for (const nn::RmsNormLayer* norm : {&layer.attention.q_norm, &layer.attention.k_norm})
        if (norm->gamma.tensor.present()) weights.summed.push_back(norm->gamma.tensor.data);
      if (shards_.size > config_.num_key_value_heads) add(layer.attention.qkv);
    }
  }

  using Kind = TensorLoader::Part;
  // A module's rows, and which of them this rank has.
  struct Part {
    std::string_view stem;
    int64_t rows;
    std::vector<Range> taken;
  };
  using Parts = std::vector<Part>;
  // A module's columns, and which of them this rank has.
  struct Columns {
    int64_t count;
    Range taken;
  };
  static Columns whole(int64_t count) { return {count, {0, count}}; }
  static Part whole(std::string_view stem, int64_t rows) { return {stem, rows, {{0, rows}}}; }

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

  nn::LinearLayer linear(const Parts& parts, int64_t layer, const Columns& columns, bool biased,
                         Kind kind = Kind::kLayer) {
    std::vector<TensorLoader::Segment> segments;
    std::vector<TensorLoader::ParameterPart> biases;
    for (const Part& part : parts) {
      const std::string name = loader_.name(part.stem, layer);
      const TensorLoader::Segment segment = loader_.segment(name, part.rows, columns.count);
      for (const Range& rows : part.taken) {
        segments.push_back(TensorLoader::narrow(segment, rows, columns.taken));
        biases.push_back({name, part.rows, rows});
      }
    }
    nn::LinearLayer made;
    made.pieces = loader_.pieces(segments, 1, columns.taken.count, kind);
    // Of what is summed over the ranks one has the bias.
    const bool is_partial = columns.taken.count < columns.count;
    if (biased && (!is_partial || shards_.rank == 0 || loader_.checking())) {
      made.bias = loader_.joined_parameter(biases, ".bias");
    } else if (biased) {
      loader_.leave_elsewhere(biases, ".bias");
    }
    return made;
  }

  // One module in place of several of the same columns, one below the other. All of it is one range: a whole
  // tensor is one segment.
  static Part fused_part(std::string_view stem, const Parts& parts) {
    Part fused = {stem, 0, {}};
    for (const Part& part : parts) {
      for (const Range& rows : part.taken) {
        const int64_t first = fused.rows + rows.first;
        const bool goes_on =
            !fused.taken.empty() && fused.taken.back().first + fused.taken.back().count == first;
        goes_on ? static_cast<void>(fused.taken.back().count += rows.count)
                : fused.taken.push_back({first, rows.count});
      }
      fused.rows += part.rows;
    }
    return fused;
  }

  // `fused` where the file has it, else `parts` of equal meaning.
  nn::LinearLayer fused_linear(std::string_view fused, const Parts& parts, int64_t layer, int64_t columns,
                               bool biased) {
    const std::string name = loader_.name(fused, layer);
    // A fused tensor may go by one part's name (Phi-3's ffn_up): then the other part is not there.
    const bool is_fused =
        !fused.empty() && loader_.has(name) &&
        (fused != parts.back().stem || !loader_.has(loader_.name(parts.front().stem, layer)));
    return linear(is_fused ? Parts{fused_part(fused, parts)} : parts, layer, whole(columns), biased);
  }

  nn::MlpLayer mlp(std::string_view fused, const Parts& gate_up, std::string_view down, int64_t layer,
                   bool biased) {
    const Part& inner = gate_up.front();
    nn::MlpLayer made;
    made.gate_up = fused_linear(fused, gate_up, layer, config_.hidden_size, biased);
    made.down = linear({whole(down, config_.hidden_size)}, layer, {inner.rows, inner.taken.front()}, biased);
    made.activation = config_.hidden_act;
    return made;
  }

  nn::GroupedLinearLayer experts(std::string_view stacked_both, const Parts& stacked, const Parts& single,
                                 int64_t layer, const Columns& columns) {
    const int64_t count = config_.num_experts;
    const auto there = [&](std::string_view stem) {
      const std::string name = loader_.name(stem, layer);
      return !stem.empty() && (loader_.has(name) || loader_.has(name, ""));
    };
    std::vector<TensorLoader::Segment> segments;
    const auto add = [&](const TensorLoader::Segment& segment, const Part& part) {
      for (const Range& rows : part.taken)
        segments.push_back(TensorLoader::narrow(segment, rows, columns.taken));
    };
    const auto add_stacked = [&](const Part& part) {
      add(loader_.stacked(loader_.name(part.stem, layer), count, part.rows, columns.count), part);
    };
    if (there(stacked_both)) {
      add_stacked(fused_part(stacked_both, stacked));
    } else if (single.front().stem.empty() || there(stacked.front().stem)) {
      for (const Part& part : stacked) add_stacked(part);
    } else {
      for (const Part& part : single) {
        TensorLoader::Segment segment{{}, part.rows, columns.count, {}, {}};
        for (int64_t expert = 0; expert < count; ++expert) {
          const std::string name = loader_.name(part.stem, layer, expert);
          segment.tensors.push_back(loader_.segment(name, part.rows, columns.count).tensors.front());
        }
        add(segment, part);
      }
    }
    return {loader_.pieces(segments, count, columns.taken.count, Kind::kLayer)};
  }

  nn::MoeLayer moe(int64_t layer) {
    const int64_t inner = config_.moe_intermediate_size, width = config_.hidden_size;
    nn::MoeLayer made;
    const std::vector<Range> own = {shards_.expert_ffn};
    made.router =
        linear({whole(names_.router, config_.num_experts)}, layer, whole(width), false, Kind::kOther);
    made.gate_up =
        experts(names_.experts_gate_up, {{names_.experts_gate, inner, own}, {names_.experts_up, inner, own}},
                {{names_.expert_gate, inner, own}, {names_.expert_up, inner, own}}, layer, whole(width));
    made.down = experts("", {whole(names_.experts_down, width)}, {whole(names_.expert_down, width)}, layer,
                        {inner, shards_.expert_ffn});
    if (const int64_t shared = config_.shared_intermediate_size; shared > 0) {
      made.shared = mlp("",
                        {{names_.shared_gate, shared, {shards_.shared_ffn}},
                         {names_.shared_up, shared, {shards_.shared_ffn}}},
                        names_.shared_down, layer, false);
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
    const auto rows_of = [&](const Range& heads) { return Range{heads.first * dim, heads.count * dim}; };
    const Range own_q = rows_of(shards_.heads), own_kv = rows_of(shards_.kv_heads);
    made.qkv =
        fused_linear(names_.qkv, {{names_.q, q, {own_q}}, {names_.k, kv, {own_kv}}, {names_.v, kv, {own_kv}}},
                     layer, config_.hidden_size, config_.attention_bias);
    made.output = linear({whole(names_.attention_output, config_.hidden_size)}, layer, {q, own_q},
                         config_.attention_output_bias);
    using QkNorm = nn::AttentionLayer::QkNorm;
    if (config_.qk_norm != DecoderConfig::QkNorm::kNone) {
      const bool before = config_.qk_norm == DecoderConfig::QkNorm::kBeforeRope;
      made.qk_norm = before ? QkNorm::kBeforeRope : QkNorm::kAfterRope;
      made.q_norm = norm(names_.q_norm, layer, dim);
      made.k_norm = norm(names_.k_norm, layer, dim);
    }
    if (config_.layer_ropes[index])
      made.rotary = slides && weights.local_rotary ? weights.local_rotary.get() : weights.rotary.get();
    made.heads = shards_.heads.count;
    made.kv_heads = shards_.kv_heads.count;
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
      made.mlp = mlp(names_.gate_up, {{names_.gate, inner, {shards_.ffn}}, {names_.up, inner, {shards_.ffn}}},
                     names_.down, layer, config_.mlp_bias);
    }
    return made;
  }

  TensorLoader& loader_;
  const TensorNames& names_;
  const DecoderConfig& config_;
  const Shards& shards_;
  Backend* backend_;  // null: only checks
  bool trains_;       // DecoderOptions::trainers
};

Shards all_of(const DecoderConfig& config) { return *share_out(config, {}, 0, 1); }

// The largest blocks of the weights whose columns are shared out; 1 where there are none, which the checking
// pass tells.
ShardBlocks blocks_of(const ModelFiles& files, const TensorLoader& loader, const TensorNames& names,
                      const DecoderConfig& config, bool quantize_f8) {
  const auto block_of = [&](const TensorInfo& tensor) -> int64_t {
    const bool becomes_f8 =
        quantize_f8 && !traits(tensor.dtype).quantized && tensor.shape.back() % kF8Block == 0;
    return becomes_f8 ? kF8Block : traits(tensor.dtype).block_elements;
  };
  ShardBlocks blocks;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto look = [&](std::string_view stem, int64_t& block) {
      if (stem.empty()) return;
      for (const std::string_view suffix : {".weight", ""}) {
        const TensorInfo* tensor = files.find(loader.name(stem, layer) + std::string(suffix));
        if (tensor != nullptr && tensor->unsupported.empty() && !tensor->shape.empty())
          block = std::max(block, block_of(*tensor));
      }
    };
    look(names.attention_output, blocks.attention);
    look(names.down, blocks.ffn);
    look(names.experts_down, blocks.expert_ffn);
    look(names.expert_down, blocks.expert_ffn);
    look(names.shared_down, blocks.shared_ffn);
  }
  return blocks;
}

}  // namespace

DecoderWeights load_weights(const ModelFiles& files, Backend& backend, const DecoderConfig& config,
                            const DecoderOptions& options) {
  const bool gguf = files.kind() == ModelFiles::Kind::kGguf;
  const Family& family = find_family(ConfigReader(files));
  TensorLoader loader(files, backend, options);
  const TensorNames& names = family.names(gguf);
  int rank = 0, size = 1;
  if (options.trainers != nullptr) {
    rank = options.trainers->rank(), size = options.trainers->size();
  } else if (options.ranks != nullptr) {
    rank = options.ranks->rank(), size = options.ranks->size();
  }
  const Shards shards =
      size == 1 ? all_of(config)
                : need_shards(config, blocks_of(files, loader, names, config, options.quantize_f8), rank,
                              size, files.path().string());
  Builder builder(loader, names, config, shards, &backend, options.trainers != nullptr);
  builder.build();
  loader.refuse_unknown(config.num_hidden_layers);
  loader.start_loading();
  return builder.build();
}

std::vector<TensorInfo> list_weights(const ModelFiles& files, const DecoderConfig& config, DType dtype) {
  const Family& family = find_family(ConfigReader(files));
  TensorLoader::Listing listing = {.fused = family.defaults.fused, .dtype = dtype, .tensors = {}};
  TensorLoader loader(files, listing);
  const Shards shards = all_of(config);
  Builder(loader, family.names(false), config, shards, nullptr, false).build();
  return {listing.tensors.begin(), listing.tensors.end()};
}

}  // namespace qiao
