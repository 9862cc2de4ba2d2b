#include "models/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "models/tensor_loader.h"
#include "nn/encoder_layers.h"

namespace qiao {

// Norms stand after the residual's addition (post-LayerNorm), as in BERT (Devlin et al. 2018).
struct EncoderLayer {
  nn::SelfAttentionLayer attention;
  nn::LayerNormLayer attention_norm;
  nn::FeedForwardLayer feed_forward;
  nn::LayerNormLayer output_norm;
};

struct EncoderWeights {
  nn::EmbeddingLayer words;
  // Row `type * max_positions + position`: the two tables' sum, so that one gather does for both.
  nn::EmbeddingLayer places;
  nn::LayerNormLayer embedding_norm;
  nn::Parameter distances;  // biases of scores, [H, 2M - 1]; or absent
  std::vector<EncoderLayer> layers;
  uint64_t bytes = 0;
};

namespace {

// Where a key lies, seen from its query, as T5 (Raffel et al. 2020) and MPNet group distances: a bucket each
// up to a quarter of the buckets, then wider and wider ones up to 128 tokens; keys behind in the second half.
// In F32, whose rounding decides at the edges.
int64_t distance_bucket(int64_t distance, int64_t buckets) {
  constexpr float kFarthest = 128;
  const int64_t half = buckets / 2, exact = half / 2, away = std::abs(distance);
  const int64_t side = distance > 0 ? half : 0;
  if (away < exact) return side + away;
  const auto near = static_cast<float>(exact);
  const float share = std::log(static_cast<float>(away) / near) / std::log(kFarthest / near);
  const auto step = static_cast<int64_t>(share * static_cast<float>(half - exact));
  return side + std::min(exact + step, half - 1);
}

// Builds every layer; run twice, see TensorLoader.
class EncoderBuilder {
 public:
  EncoderBuilder(TensorLoader& loader, const EncoderNames& names, const EncoderConfig& config,
                 Backend& backend)
      : loader_(loader), names_(names), config_(config), backend_(backend) {}

  EncoderWeights build() {
    EncoderWeights weights;
    const int64_t width = config_.hidden_size;
    const auto words =
        loader_.pieces({loader_.segment(loader_.name(names_.words), config_.vocabulary_size, width)}, 1,
                       width, TensorLoader::Part::kOther);
    weights.places = places();
    weights.embedding_norm = norm(names_.embedding_norm, 0);
    if (config_.relative_buckets > 0) weights.distances = distances();
    if (!loader_.checking()) weights.words.table = words.front().weight;
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer)
      weights.layers.push_back(build_layer(layer, weights.distances));
    weights.bytes = loader_.laid_out_bytes() + static_cast<uint64_t>(place_bytes_);
    return weights;
  }

 private:
  nn::EmbeddingLayer places() {
    const int64_t width = config_.hidden_size, positions = config_.max_positions();
    const int64_t types = std::max<int64_t>(1, config_.type_vocabulary_size);
    const std::vector<float> position_rows =
        loader_.matrix(loader_.name(names_.positions), config_.position_rows, width);
    std::vector<float> type_rows(static_cast<size_t>(width));
    if (config_.type_vocabulary_size > 0)
      type_rows = loader_.matrix(loader_.name(names_.types), config_.type_vocabulary_size, width);
    if (loader_.checking()) return {};
    std::vector<float> sums;
    sums.reserve(static_cast<size_t>(types * positions * width));
    for (int64_t type = 0; type < types; ++type) {
      for (int64_t i = 0; i < positions * width; ++i) {
        sums.push_back(position_rows[static_cast<size_t>(config_.position_offset * width + i)] +
                       type_rows[static_cast<size_t>(type * width + i % width)]);
      }
    }
    WeightSource source{.experts = 1, .columns = width, .parts = {}};
    source.parts = {{DType::kF32, types * positions, reinterpret_cast<const std::byte*>(sums.data())}};
    nn::EmbeddingLayer made;
    made.table = backend_.make_weight(source);
    place_bytes_ = made.table->bytes();
    return made;
  }

  // The biases of all distances that a sequence can have, head by head.
  nn::Parameter distances() {
    const int64_t heads = config_.num_attention_heads, farthest = config_.max_positions() - 1;
    const std::vector<float> rows =
        loader_.matrix(loader_.name(names_.relative), config_.relative_buckets, heads);
    if (loader_.checking()) return {};
    std::vector<float> table;
    table.reserve(static_cast<size_t>(heads * (2 * farthest + 1)));
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t distance = -farthest; distance <= farthest; ++distance)
        table.push_back(
            rows[static_cast<size_t>(distance_bucket(distance, config_.relative_buckets) * heads + head)]);
    }
    return nn::Parameter::upload(backend_, table);
  }

  // Checkpoints that were converted from TensorFlow say gamma and beta.
  nn::LayerNormLayer norm(std::string_view stem, int64_t layer) {
    const std::string name = loader_.name(stem, layer);
    const bool old = !loader_.has(name) && loader_.has(name, ".gamma");
    return {loader_.parameter(name, old ? ".gamma" : ".weight", config_.hidden_size),
            loader_.parameter(name, old ? ".beta" : ".bias", config_.hidden_size), config_.layer_norm_eps};
  }

  nn::LinearLayer linear(std::initializer_list<std::string_view> stems, int64_t layer, int64_t rows,
                         int64_t columns) {
    std::vector<TensorLoader::Segment> segments;
    std::vector<TensorLoader::ParameterPart> biases;
    for (const std::string_view stem : stems) {
      const std::string name = loader_.name(stem, layer);
      segments.push_back(loader_.segment(name, rows, columns));
      biases.push_back({name, rows, {0, rows}});
    }
    nn::LinearLayer made;
    made.pieces = loader_.pieces(segments, 1, columns, TensorLoader::Part::kLayer);
    made.bias = loader_.joined_parameter(biases, ".bias");
    return made;
  }

  EncoderLayer build_layer(int64_t layer, const nn::Parameter& distances) {
    if (!loader_.checking()) loader_.will_need_layer(layer + 1);
    const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
    EncoderLayer made;
    made.attention.qkv = linear({names_.q, names_.k, names_.v}, layer, width, width);
    made.attention.output = linear({names_.attention_output}, layer, width, width);
    made.attention.heads = config_.num_attention_heads;
    made.attention.head_dim = width / config_.num_attention_heads;
    if (distances.tensor.present()) {
      made.attention.bias = Tensor(distances.tensor.data, DType::kF32,
                                   {config_.num_attention_heads, 2 * config_.max_positions() - 1});
    }
    made.attention_norm = norm(names_.attention_norm, layer);
    made.feed_forward.up = linear({names_.up}, layer, inner, width);
    made.feed_forward.down = linear({names_.down}, layer, width, inner);
    made.feed_forward.activation = config_.hidden_act;
    made.output_norm = norm(names_.output_norm, layer);
    return made;
  }

  TensorLoader& loader_;
  const EncoderNames& names_;
  const EncoderConfig& config_;
  Backend& backend_;
  size_t place_bytes_ = 0;
};

// Indices of a batch, in one block: tokens, places, starts.
class EncoderMemory final : public Encoder::Workspace {
 public:
  EncoderMemory(Backend& backend, const Encoder::Limits& batch_limits, size_t scratch_bytes)
      : limits(batch_limits),
        host(static_cast<size_t>(2 * limits.tokens + limits.sequences + 1)),
        device(backend.allocate(host.size() * sizeof(int32_t))),
        scratch(backend.allocate(scratch_bytes)) {}
  size_t bytes() const override { return device.bytes() + scratch.bytes(); }

  Encoder::Limits limits;
  std::vector<int32_t> host;
  Buffer device, scratch;
};

struct EncoderIndices {
  Tensor tokens, places, starts;
  EncoderIndices(void* memory, int64_t count, int64_t sequences) {
    auto* at = static_cast<int32_t*>(memory);
    tokens = Tensor(at, DType::kI32, {count});
    places = Tensor(at + count, DType::kI32, {count});
    starts = Tensor(at + 2 * count, DType::kI32, {sequences + 1});
  }
};

Tensor run_encoder(nn::Context& context, const EncoderWeights& weights, const EncoderConfig& config,
                   const EncoderIndices& indices) {
  const int64_t tokens = indices.tokens.shape[0];
  const Tensor x = context.take(DType::kF32, {tokens, config.hidden_size});
  const Tensor y = context.take(DType::kF32, {tokens, config.hidden_size});
  weights.words.forward(context, indices.tokens, x);
  weights.places.forward(context, indices.places, y);
  weights.embedding_norm.forward(context, x, x, y);
  for (const EncoderLayer& layer : weights.layers) {
    layer.attention.forward(context, x, indices.starts, y);
    layer.attention_norm.forward(context, y, x);
    layer.feed_forward.forward(context, x, y);
    layer.output_norm.forward(context, y, x);
  }
  return x;
}

[[noreturn]] void refuse_batch(const std::string& what) {
  throw_error(ErrorKind::kInvalidInput, "encoder batch: {}", what);
}

void check_batch(const EncoderBatch& batch, const EncoderConfig& config, const Encoder::Limits& limits) {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const auto sequences = static_cast<int64_t>(batch.starts.size()) - 1;
  if (tokens < 1 || sequences < 1) refuse_batch("no tokens");
  if (tokens > limits.tokens || sequences > limits.sequences) {
    refuse_batch(fmt::format("{} tokens in {} sequences; the workspace is for {} in {}", tokens, sequences,
                             limits.tokens, limits.sequences));
  }
  if (!batch.types.empty() && batch.types.size() != batch.tokens.size())
    refuse_batch(fmt::format("{} types for {} tokens", batch.types.size(), tokens));
  const int64_t types = std::max<int64_t>(1, config.type_vocabulary_size);
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    if (batch.tokens[t] < 0 || batch.tokens[t] >= config.vocabulary_size) {
      refuse_batch(fmt::format("token {} is {}; 0 to {} was expected", t, batch.tokens[t],
                               config.vocabulary_size - 1));
    }
    if (!batch.types.empty() && (batch.types[t] < 0 || batch.types[t] >= types))
      refuse_batch(fmt::format("type {} is {}; 0 to {} was expected", t, batch.types[t], types - 1));
  }
  if (batch.starts.front() != 0 || batch.starts.back() != tokens)
    refuse_batch(fmt::format("starts do not run from 0 to {}", tokens));
  for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
    const int64_t length = int64_t{batch.starts[s + 1]} - batch.starts[s];
    if (length < 0 || length > config.max_positions()) {
      refuse_batch(
          fmt::format("sequence {} has {} tokens; 0 to {} was expected", s, length, config.max_positions()));
    }
  }
}

}  // namespace

struct Encoder::Parts {
  EncoderConfig config;
  Backend* backend = nullptr;
  EncoderWeights weights;
};

Encoder::Encoder(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Encoder::~Encoder() = default;
const EncoderConfig& Encoder::config() const { return parts_->config; }
Backend& Encoder::backend() const { return *parts_->backend; }
uint64_t Encoder::weight_bytes() const { return parts_->weights.bytes; }

std::unique_ptr<Encoder> Encoder::load(const ModelFiles& files, Backend& backend,
                                       const DecoderOptions& options) {
  auto parts = std::make_unique<Parts>();
  parts->config = read_encoder_config(files);
  parts->backend = &backend;
  const EncoderFamily& family = *find_encoder_family(files);
  std::string_view root = family.prefixes[0];
  if (files.find(fmt::format("{}{}.weight", root, family.names.words)) == nullptr) root = family.prefixes[1];
  TensorLoader loader(files, backend, options, std::string(root), family.names.layers);
  EncoderBuilder builder(loader, family.names, parts->config, backend);
  builder.build();
  loader.refuse_unknown(parts->config.num_hidden_layers);
  loader.start_loading();
  parts->weights = builder.build();
  return std::unique_ptr<Encoder>(new Encoder(std::move(parts)));
}

std::unique_ptr<Encoder::Workspace> Encoder::make_workspace(const Limits& limits) const {
  if (limits.tokens < 1 || limits.sequences < 1) {
    throw_error(ErrorKind::kInvalidInput, "workspace of {} tokens and {} sequences", limits.tokens,
                limits.sequences);
  }
  alignas(64) static int32_t nothing = 0;  // shapes without memory
  nn::Context measure(backend());
  run_encoder(measure, parts_->weights, config(), {&nothing, limits.tokens, limits.sequences});
  return std::make_unique<EncoderMemory>(backend(), limits, measure.peak());
}

Tensor Encoder::forward(const EncoderBatch& batch, Workspace& workspace) const {
  auto& memory = static_cast<EncoderMemory&>(workspace);
  check_batch(batch, config(), memory.limits);
  const size_t count = batch.tokens.size();
  int32_t* host = memory.host.data();
  std::memcpy(host, batch.tokens.data(), batch.tokens.size_bytes());
  for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
    for (int32_t t = batch.starts[s]; t < batch.starts[s + 1]; ++t) {
      const int32_t type = batch.types.empty() ? 0 : batch.types[static_cast<size_t>(t)];
      host[count + static_cast<size_t>(t)] =
          static_cast<int32_t>(type * config().max_positions() + (t - batch.starts[s]));
    }
  }
  std::memcpy(host + 2 * count, batch.starts.data(), batch.starts.size_bytes());
  backend().upload(memory.device.data(), host, (2 * count + batch.starts.size()) * sizeof(int32_t));
  nn::Context context(backend(), memory.scratch.data(), memory.scratch.bytes());
  return run_encoder(
      context, parts_->weights, config(),
      {memory.device.data(), static_cast<int64_t>(count), static_cast<int64_t>(batch.starts.size()) - 1});
}

}  // namespace qiao
