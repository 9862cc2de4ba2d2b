#include "models/config.h"

#include <cmath>

#include "base/error.h"
#include "base/quote.h"
#include "models/families.h"
#include "models/rope_config.h"

namespace qiao {
namespace {

constexpr ConfigKey kVocabulary = {"vocab_size", "vocab_size"};
constexpr ConfigKey kHidden = {"hidden_size", "embedding_length"};
constexpr ConfigKey kIntermediate = {"intermediate_size", "feed_forward_length"};
constexpr ConfigKey kLayers = {"num_hidden_layers", "block_count"};
constexpr ConfigKey kHeads = {"num_attention_heads", "attention.head_count"};
constexpr ConfigKey kKvHeads = {"num_key_value_heads", "attention.head_count_kv"};
constexpr ConfigKey kHeadDim = {"head_dim", "attention.key_length"};
constexpr ConfigKey kValueDim = {"", "attention.value_length"};
constexpr ConfigKey kPositions = {"max_position_embeddings", "context_length"};
constexpr ConfigKey kEpsilon = {"rms_norm_eps", "attention.layer_norm_rms_epsilon"};

// `absent` 0: the key must be there.
int64_t integer_or(const ConfigReader& reader, ConfigKey key, int64_t high, int64_t absent) {
  const auto value = reader.find_integer(key, 1, high);
  if (!value && (absent == 0 || reader.gguf())) reader.refuse_missing(key);
  return value.value_or(absent);
}

int64_t read_vocabulary(const ConfigReader& reader, int64_t absent) {
  if (reader.gguf()) {
    const auto* tokens = reader.files().metadata().find_strings("tokenizer.ggml.tokens");
    if (tokens != nullptr) {
      const auto count = static_cast<int64_t>(tokens->size());
      if (count < 1 || count > kMaxVocabulary) {
        throw_error(ErrorKind::kInvalidInput,
                    "{}: tokenizer.ggml.tokens has {} entries; 1 to {} were expected", reader.source(), count,
                    kMaxVocabulary);
      }
      return count;
    }
    const TensorInfo* table = reader.files().find("token_embd.weight");
    if (table != nullptr && table->shape.size() == 2) absent = table->shape[0];
    const auto written = reader.find_integer(kVocabulary, 1, kMaxVocabulary);
    return written.value_or(absent) > 0 ? written.value_or(absent)
                                        : integer_or(reader, kVocabulary, kMaxVocabulary, 0);
  }
  return integer_or(reader, kVocabulary, kMaxVocabulary, absent);
}

Activation read_activation(const ConfigReader& reader, const Family::Defaults& defaults) {
  const ConfigKey key = {defaults.activation_key, ""};
  const std::string name = reader.find_string(key).value_or(std::string(defaults.activation));
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGelu;
  throw_error(ErrorKind::kUnsupported,
              "{}: {} {} is not supported; supported are: silu, swish, gelu, gelu_new, gelu_pytorch_tanh",
              reader.source(), reader.name(key), quote_text(name));
}

void read_sizes(const ConfigReader& reader, const Family::Defaults& defaults, DecoderConfig& config) {
  config.num_hidden_layers = reader.integer(kLayers, 1, kMaxLayers);
  config.hidden_size = reader.integer(kHidden, 1, kMaxWidth);
  config.intermediate_size = reader.integer(kIntermediate, 1, kMaxWidth);
  config.num_attention_heads = integer_or(reader, kHeads, kMaxHeads, defaults.attention_heads);
  const int64_t kv_absent =
      defaults.key_value_heads != 0 ? defaults.key_value_heads : config.num_attention_heads;
  config.num_key_value_heads = reader.find_integer(kKvHeads, 1, kMaxHeads).value_or(kv_absent);
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    reader.refuse(kKvHeads, fmt::to_string(config.num_key_value_heads),
                  fmt::format("a divisor of {} ({})", reader.name(kHeads), config.num_attention_heads));
  }
  const auto head_dim = reader.find_integer(kHeadDim, 1, kMaxHeadDim);
  if (head_dim) {
    config.head_dim = *head_dim;
  } else if (!reader.gguf() && defaults.head_dim != 0) {
    config.head_dim = defaults.head_dim;
  } else {
    if (config.hidden_size % config.num_attention_heads != 0) {
      reader.refuse(kHeads, fmt::to_string(config.num_attention_heads),
                    fmt::format("a divisor of {} ({})", reader.name(kHidden), config.hidden_size));
    }
    config.head_dim = config.hidden_size / config.num_attention_heads;
    if (config.head_dim > kMaxHeadDim) {
      reader.refuse(kHeads, fmt::to_string(config.num_attention_heads),
                    fmt::format("enough heads for at most {} dimensions each", kMaxHeadDim));
    }
  }
  const int64_t value_dim = reader.find_integer(kValueDim, 1, kMaxHeadDim).value_or(config.head_dim);
  if (value_dim != config.head_dim)
    reader.refuse(kValueDim, fmt::to_string(value_dim), fmt::format("the key length {}", config.head_dim));
  config.max_position_embeddings =
      integer_or(reader, kPositions, kMaxPositions, defaults.max_position_embeddings);
  const auto epsilon = reader.find_number(kEpsilon, 1e-12, 1.0);
  if (!epsilon && (reader.gguf() || defaults.rms_norm_eps == 0)) reader.refuse_missing(kEpsilon);
  config.rms_norm_eps = static_cast<float>(epsilon.value_or(defaults.rms_norm_eps));
}

// Where nothing in the file says so, tensors do.
void read_from_tensors(const ConfigReader& reader, const Family& family, DecoderConfig& config) {
  const ModelFiles& files = reader.files();
  if (reader.gguf()) {
    config.tie_word_embeddings = files.find("output.weight") == nullptr;
    config.attention_bias =
        files.find("blk.0.attn_q.bias") != nullptr || files.find("blk.0.attn_qkv.bias") != nullptr;
    config.attention_output_bias = files.find("blk.0.attn_output.bias") != nullptr;
    config.mlp_bias = files.find("blk.0.ffn_up.bias") != nullptr;
    return;
  }
  const auto written = reader.find_flag({"tie_word_embeddings", ""});
  // Without tensors, a model that begins from nothing: as the family has it.
  const bool has_head = files.tensors().empty() || files.find("lm_head.weight") != nullptr ||
                        files.find("language_model.lm_head.weight") != nullptr;
  config.tie_word_embeddings = written.value_or(!has_head || family.defaults.tied);
}

}  // namespace

DecoderConfig read_decoder_config(const ModelFiles& files, int64_t context) {
  if (context < 0 || context > kMaxPositions)
    throw_error(ErrorKind::kInvalidInput, "context {}: 0 to {} was expected", context, kMaxPositions);
  const ConfigReader reader(files);
  const Family& family = find_family(reader);
  DecoderConfig config;
  config.architecture = reader.architecture();
  read_sizes(reader, family.defaults, config);
  config.vocabulary_size = read_vocabulary(reader, family.defaults.vocabulary_size);
  config.hidden_act = read_activation(reader, family.defaults);
  config.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  const auto layers = static_cast<size_t>(config.num_hidden_layers);
  config.layer_slides.assign(layers, false);
  config.layer_ropes.assign(layers, true);
  config.layer_is_moe.assign(layers, false);
  read_from_tensors(reader, family, config);
  family.configure(reader, config);
  read_rope(reader, family, context, config);
  return config;
}

}  // namespace qiao
