#include "models/encoder_config.h"

#include "base/error.h"
#include "base/quote.h"
#include "models/config_reader.h"
#include "models/families.h"

namespace qiao {
namespace {

constexpr EncoderNames kBertNames = {
    .words = "embeddings.word_embeddings",
    .positions = "embeddings.position_embeddings",
    .types = "embeddings.token_type_embeddings",
    .embedding_norm = "embeddings.LayerNorm",
    .layers = "encoder.layer.",
    .q = "encoder.layer.{}.attention.self.query",
    .k = "encoder.layer.{}.attention.self.key",
    .v = "encoder.layer.{}.attention.self.value",
    .attention_output = "encoder.layer.{}.attention.output.dense",
    .attention_norm = "encoder.layer.{}.attention.output.LayerNorm",
    .up = "encoder.layer.{}.intermediate.dense",
    .down = "encoder.layer.{}.output.dense",
    .output_norm = "encoder.layer.{}.output.LayerNorm",
};
constexpr EncoderNames mpnet_names() {
  EncoderNames names = kBertNames;
  names.types = "";
  names.relative = "encoder.relative_attention_bias";
  names.q = "encoder.layer.{}.attention.attn.q";
  names.k = "encoder.layer.{}.attention.attn.k";
  names.v = "encoder.layer.{}.attention.attn.v";
  names.attention_output = "encoder.layer.{}.attention.attn.o";
  names.attention_norm = "encoder.layer.{}.attention.LayerNorm";
  return names;
}
constexpr EncoderNames kDistilBertNames = {
    .words = "embeddings.word_embeddings",
    .positions = "embeddings.position_embeddings",
    .types = "",
    .embedding_norm = "embeddings.LayerNorm",
    .layers = "transformer.layer.",
    .q = "transformer.layer.{}.attention.q_lin",
    .k = "transformer.layer.{}.attention.k_lin",
    .v = "transformer.layer.{}.attention.v_lin",
    .attention_output = "transformer.layer.{}.attention.out_lin",
    .attention_norm = "transformer.layer.{}.sa_layer_norm",
    .up = "transformer.layer.{}.ffn.lin1",
    .down = "transformer.layer.{}.ffn.lin2",
    .output_norm = "transformer.layer.{}.output_layer_norm",
};
constexpr EncoderNames kGgufBertNames = {
    .words = "token_embd",
    .positions = "position_embd",
    .types = "token_types",
    .embedding_norm = "token_embd_norm",
    .layers = "blk.",
    .q = "blk.{}.attn_q",
    .k = "blk.{}.attn_k",
    .v = "blk.{}.attn_v",
    .attention_output = "blk.{}.attn_output",
    .attention_norm = "blk.{}.attn_output_norm",
    .up = "blk.{}.ffn_up",
    .down = "blk.{}.ffn_down",
    .output_norm = "blk.{}.layer_output_norm",
};

// llama.cpp's converter has taken RoBERTa's offset out of the position table.
constexpr EncoderFamily kEncoderFamilies[] = {
    {"bert",
     false,
     kBertNames,
     {"", "bert."},
     "bert.pooler.dense",
     "classifier",
     HeadActivation::kTanh,
     false,
     1e-12},
    {"roberta",
     false,
     kBertNames,
     {"", "roberta."},
     "classifier.dense",
     "classifier.out_proj",
     HeadActivation::kTanh,
     true,
     1e-12},
    {"xlm-roberta",
     false,
     kBertNames,
     {"", "roberta."},
     "classifier.dense",
     "classifier.out_proj",
     HeadActivation::kTanh,
     true,
     1e-12},
    {"camembert",
     false,
     kBertNames,
     {"", "roberta."},
     "classifier.dense",
     "classifier.out_proj",
     HeadActivation::kTanh,
     true,
     1e-12},
    {"electra",
     false,
     kBertNames,
     {"", "electra."},
     "classifier.dense",
     "classifier.out_proj",
     HeadActivation::kGelu,
     false,
     1e-12},
    {"mpnet",
     false,
     mpnet_names(),
     {"", "mpnet."},
     "classifier.dense",
     "classifier.out_proj",
     HeadActivation::kTanh,
     true,
     1e-12},
    {"distilbert",
     false,
     kDistilBertNames,
     {"", "distilbert."},
     "pre_classifier",
     "classifier",
     HeadActivation::kRelu,
     false,
     1e-12},
    {"bert", true, kGgufBertNames, {"", ""}, "cls", "cls.output", HeadActivation::kTanh, false, 0},
};

constexpr ConfigKey kEncoderVocabulary = {"vocab_size", "vocab_size"};
constexpr ConfigKey kEncoderTypes = {"type_vocab_size", ""};
constexpr ConfigKey kEncoderPadding = {"pad_token_id", ""};
constexpr ConfigKey kEncoderPositions = {"max_position_embeddings", "context_length"};
constexpr ConfigKey kEncoderEpsilon = {"layer_norm_eps", "attention.layer_norm_epsilon"};

// DistilBERT has other names for the sizes.
struct SizeKeys {
  ConfigKey width, inner, layers, heads, activation;
};
constexpr SizeKeys kSizeKeys = {{"hidden_size", "embedding_length"},
                                {"intermediate_size", "feed_forward_length"},
                                {"num_hidden_layers", "block_count"},
                                {"num_attention_heads", "attention.head_count"},
                                {"hidden_act", ""}};
constexpr SizeKeys kDistilBertKeys = {
    {"dim", ""}, {"hidden_dim", ""}, {"n_layers", ""}, {"n_heads", ""}, {"activation", ""}};

Activation read_encoder_activation(const ConfigReader& reader, ConfigKey key) {
  if (reader.gguf()) return Activation::kGelu;
  const std::string name = reader.find_string(key).value_or("gelu");
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  if (name == "silu" || name == "swish") return Activation::kSilu;
  throw_error(ErrorKind::kUnsupported,
              "{}: {} {} is not supported; supported are: gelu, gelu_new, gelu_pytorch_tanh, silu, swish",
              reader.source(), reader.name(key), quote_text(name));
}

// What would be computed wrongly if it were overlooked.
void refuse_variants(const ConfigReader& reader) {
  if (reader.gguf()) return;
  const std::string kind = reader.find_string({"position_embedding_type", ""}).value_or("absolute");
  if (kind != "absolute") {
    throw_error(ErrorKind::kUnsupported, "{}: position_embedding_type {} is not supported; absolute is",
                reader.source(), quote_text(kind));
  }
  for (const std::string_view flag : {"is_decoder", "add_cross_attention"}) {
    if (reader.find_flag({flag, ""}).value_or(false))
      throw_error(ErrorKind::kUnsupported, "{}: {} true is not supported", reader.source(), flag);
  }
}

const TensorInfo* find_with_prefix(const ModelFiles& files, const EncoderFamily& family,
                                   std::string_view stem) {
  for (const std::string_view prefix : family.prefixes) {
    if (const TensorInfo* tensor = files.find(fmt::format("{}{}.weight", prefix, stem))) return tensor;
  }
  return nullptr;
}

// Rows of a table that only its tensor tells; `absent` where there is none.
int64_t rows_of(const TensorInfo* tensor, int64_t absent) {
  return tensor != nullptr && tensor->shape.size() == 2 && tensor->shape[0] >= 1 ? tensor->shape[0] : absent;
}

}  // namespace

const EncoderFamily* find_encoder_family(const ModelFiles& files) {
  const ConfigReader reader(files);
  for (const EncoderFamily& family : kEncoderFamilies)
    if (family.gguf == reader.gguf() && family.name == reader.architecture()) return &family;
  return nullptr;
}

EncoderConfig read_encoder_config(const ModelFiles& files) {
  const ConfigReader reader(files);
  const EncoderFamily* family = find_encoder_family(files);
  if (family == nullptr) {
    throw_error(ErrorKind::kUnsupported, "{}: architecture {} is not an encoder that Qiao knows",
                reader.source(), quote_text(reader.architecture()));
  }
  refuse_variants(reader);
  const SizeKeys& keys = family->name == "distilbert" ? kDistilBertKeys : kSizeKeys;
  EncoderConfig config;
  config.architecture = reader.architecture();
  config.num_hidden_layers = reader.integer(keys.layers, 1, kMaxLayers);
  config.hidden_size = reader.integer(keys.width, 1, kMaxWidth);
  config.intermediate_size = reader.integer(keys.inner, 1, kMaxWidth);
  config.num_attention_heads = reader.integer(keys.heads, 1, kMaxHeads);
  if (config.hidden_size % config.num_attention_heads != 0) {
    reader.refuse(keys.heads, fmt::to_string(config.num_attention_heads),
                  fmt::format("a divisor of {} ({})", reader.name(keys.width), config.hidden_size));
  }
  config.hidden_act = read_encoder_activation(reader, keys.activation);
  const ConfigKey embedding = {"embedding_size", ""};  // ELECTRA's small model projects it up
  if (const auto size = reader.find_integer(embedding, 1, kMaxWidth); size && *size != config.hidden_size) {
    throw_error(ErrorKind::kUnsupported, "{}: {} is {}: only as wide as {} ({}) is supported",
                reader.source(), reader.name(embedding), *size, reader.name(keys.width), config.hidden_size);
  }
  const TensorInfo* words = find_with_prefix(files, *family, family->names.words);
  config.vocabulary_size =
      reader.gguf() ? rows_of(words, 0) : reader.integer(kEncoderVocabulary, 1, kMaxVocabulary);
  if (config.vocabulary_size < 1 || config.vocabulary_size > kMaxVocabulary)
    throw_error(ErrorKind::kInvalidInput, "{}: token_embd.weight is missing or has no rows", reader.source());
  config.position_rows = reader.integer(kEncoderPositions, 1, kMaxWidth);
  if (family->offset_positions) {
    config.position_offset = reader.find_integer(kEncoderPadding, 0, kMaxWidth).value_or(1) + 1;
    if (config.max_positions() < 1) {
      reader.refuse(kEncoderPositions, fmt::to_string(config.position_rows),
                    fmt::format("more than {} + 1", reader.name(kEncoderPadding)));
    }
  }
  if (!family->names.types.empty()) {
    const TensorInfo* types = find_with_prefix(files, *family, family->names.types);
    constexpr int64_t kMaxTypes = 16;
    config.type_vocabulary_size =
        reader.gguf() ? rows_of(types, 0) : reader.find_integer(kEncoderTypes, 1, kMaxTypes).value_or(2);
    if (config.type_vocabulary_size > kMaxTypes)
      throw_error(ErrorKind::kInvalidInput, "{}: more than {} token types", reader.source(), kMaxTypes);
  }
  if (!family->names.relative.empty()) {
    constexpr int64_t kMaxBuckets = 1024;
    config.relative_buckets =
        reader.find_integer({"relative_attention_num_buckets", ""}, 4, kMaxBuckets).value_or(32);
  }
  const auto epsilon = reader.find_number(kEncoderEpsilon, 1e-15, 1.0);
  if (!epsilon && family->layer_norm_eps == 0) reader.refuse_missing(kEncoderEpsilon);
  config.layer_norm_eps = static_cast<float>(epsilon.value_or(family->layer_norm_eps));
  if (!family->head_output.empty()) {
    config.num_labels = rows_of(files.find(fmt::format("{}.weight", family->head_output)), 0);
    if (config.num_labels > kMaxWidth)
      throw_error(ErrorKind::kInvalidInput, "{}: a head of {} labels", reader.source(), config.num_labels);
  }
  return config;
}

}  // namespace qiao
