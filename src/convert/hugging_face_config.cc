#include "convert/hugging_face_config.h"

#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/quote.h"
#include "models/config_reader.h"
#include "models/rope_frequencies.h"

namespace qiao::convert {
namespace {

// general.architecture, model_type and the class, without what configurations add.
struct ConvertedFamily {
  std::string_view architecture, model_type, model_class;
};
constexpr std::array<ConvertedFamily, 6> kConverted = {{{"llama", "llama", "LlamaForCausalLM"},
                                                        {"qwen2", "qwen2", "Qwen2ForCausalLM"},
                                                        {"qwen3", "qwen3", "Qwen3ForCausalLM"},
                                                        {"gemma2", "gemma2", "Gemma2ForCausalLM"},
                                                        {"gemma3", "gemma3_text", "Gemma3ForCausalLM"},
                                                        {"smollm3", "smollm3", "SmolLM3ForCausalLM"}}};

const ConvertedFamily& family_of(const ConfigReader& reader) {
  std::string names;
  for (const ConvertedFamily& family : kConverted) {
    if (family.architecture == reader.architecture()) return family;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", family.architecture);
  }
  throw_error(ErrorKind::kUnsupported,
              "{}: architecture {} is not written as a Hugging Face directory; {} are", reader.source(),
              quote_text(reader.architecture()), names);
}

constexpr double kMost = 1e18;

double theta_of(const ConfigReader& reader) {
  return reader.find_number({"", "rope.freq_base"}, 1.001, kMost).value_or(10000.0);
}

// The parameters of Llama 3's scaling are not in GGUF files, their result is: those of the published models
// are tried.
Json llama3_scaling(const ConfigReader& reader, const DecoderConfig& config) {
  for (const double factor : {8.0, 32.0, 16.0, 4.0}) {
    RopeScaling scaling;
    scaling.kind = RopeScaling::Kind::kLlama3;
    scaling.theta = theta_of(reader);
    scaling.factor = factor;
    scaling.original_context = 8192;
    const RopeTable table =
        make_rope_table(scaling, static_cast<int64_t>(2 * config.rope.inverse_frequencies.size()),
                        config.max_position_embeddings, config.max_position_embeddings);
    double apart = 0;
    for (size_t i = 0; i < table.inverse_frequencies.size(); ++i) {
      apart = std::max(apart, std::abs(static_cast<double>(table.inverse_frequencies[i]) /
                                           static_cast<double>(config.rope.inverse_frequencies[i]) -
                                       1));
    }
    if (apart > 1e-5) continue;
    return {{"rope_type", "llama3"},
            {"factor", factor},
            {"low_freq_factor", 1.0},
            {"high_freq_factor", 4.0},
            {"original_max_position_embeddings", 8192}};
  }
  throw_error(
      ErrorKind::kUnsupported,
      "{}: tensor rope_freqs.weight: the frequencies are none of Llama 3's; config.json cannot say them",
      reader.source());
}

// null: none.
Json scaling_json(const ConfigReader& reader, const DecoderConfig& config) {
  const auto number = [&](std::string_view key) { return reader.find_number({"", key}, 0.0, 1e12); };
  if (reader.files().find("rope_freqs.weight") != nullptr) return llama3_scaling(reader, config);
  const std::string type = reader.find_string({"", "rope.scaling.type"}).value_or("none");
  auto factor = number("rope.scaling.factor");
  if (!factor) factor = number("rope.scale_linear");
  if (type == "none" || (type == "linear" && factor.value_or(1.0) == 1.0)) {
    if (factor.value_or(1.0) == 1.0 || type == "none") return nullptr;
  }
  if (type == "linear") return {{"rope_type", "linear"}, {"factor", *factor}};
  if (type == "yarn" && factor) {
    Json json = {{"rope_type", "yarn"}, {"factor", *factor}};
    if (const auto original = number("rope.scaling.original_context_length"))
      json["original_max_position_embeddings"] = static_cast<int64_t>(*original);
    if (const auto fast = number("rope.scaling.yarn_beta_fast")) json["beta_fast"] = *fast;
    if (const auto slow = number("rope.scaling.yarn_beta_slow")) json["beta_slow"] = *slow;
    if (const auto attention = number("rope.scaling.yarn_attn_factor"); attention && *attention != 1.0)
      json["attention_factor"] = *attention;
    return json;
  }
  throw_error(ErrorKind::kUnsupported, "{}: {} {} is not written as config.json; linear and yarn are",
              reader.source(), reader.name({"", "rope.scaling.type"}), quote_text(type));
}

Json layer_types(const DecoderConfig& config) {
  Json types = Json::array();
  for (const bool slides : config.layer_slides)
    types.push_back(slides ? "sliding_attention" : "full_attention");
  return types;
}

std::string_view dtype_name(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
}

void add_tokens(const ConfigReader& reader, Json& json) {
  const GgufMetadata& metadata = reader.files().metadata();
  for (const auto& [ours, theirs] : {std::pair{"bos_token_id", "bos_token_id"},
                                     {"eos_token_id", "eos_token_id"},
                                     {"pad_token_id", "padding_token_id"}}) {
    const auto id = metadata.find_int(fmt::format("tokenizer.ggml.{}", theirs));
    json[ours] = nullptr;
    if (id && *id >= 0 && *id < INT32_MAX) json[ours] = *id;
  }
}

void add_gemma(const ConfigReader& reader, const DecoderConfig& config, Json& json) {
  const bool third = reader.architecture() == "gemma3";
  // 1 / sqrt of it is the scale, which is a float32.
  const double scalar =
      1.0 / (static_cast<double>(config.attention_scale) * static_cast<double>(config.attention_scale));
  json["query_pre_attn_scalar"] = scalar;
  if (std::abs(scalar - std::round(scalar)) < 1e-4 * scalar)
    json["query_pre_attn_scalar"] = static_cast<int64_t>(std::round(scalar));
  json["hidden_activation"] = "gelu_pytorch_tanh";
  json.erase("hidden_act");
  const auto cap = [](float value) { return value > 0 ? Json(value) : Json(nullptr); };
  json["attn_logit_softcapping"] = cap(config.attn_logit_softcapping);
  json["final_logit_softcapping"] = cap(config.final_logit_softcapping);
  json["sliding_window"] = config.sliding_window;
  json["layer_types"] = layer_types(config);
  if (!third) return;
  const double local = reader.find_number({"", "rope.freq_base_swa"}, 1.001, kMost).value_or(10000.0);
  json["rope_local_base_freq"] = local;
}

}  // namespace

void check_convertible(const ModelFiles& files, const DecoderConfig& config) {
  const ConfigReader reader(files);
  const ConvertedFamily& family = family_of(reader);
  scaling_json(reader, config);
  const auto usual = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  if (!family.model_type.starts_with("gemma") && config.attention_scale != usual) {
    throw_error(ErrorKind::kUnsupported, "{}: {} {}: config.json cannot say it", reader.source(),
                reader.name({"", "attention.scale"}), config.attention_scale);
  }
}

Json config_json(const ModelFiles& files, const DecoderConfig& config, DType dtype) {
  const ConfigReader reader(files);
  const ConvertedFamily& family = family_of(reader);
  const double epsilon = static_cast<double>(config.rms_norm_eps);
  // The file has a float32 of what was written in decimals: the shortest that gives it again.
  const auto shortest = [](double value) { return std::stod(fmt::format("{}", static_cast<float>(value))); };
  Json json = {{"architectures", Json::array({family.model_class})},
               {"model_type", family.model_type},
               {"vocab_size", config.vocabulary_size},
               {"hidden_size", config.hidden_size},
               {"intermediate_size", config.intermediate_size},
               {"num_hidden_layers", config.num_hidden_layers},
               {"num_attention_heads", config.num_attention_heads},
               {"num_key_value_heads", config.num_key_value_heads},
               {"head_dim", config.head_dim},
               {"max_position_embeddings", config.max_position_embeddings},
               {"rms_norm_eps", shortest(epsilon)},
               {"rope_theta", shortest(theta_of(reader))},
               {"rope_scaling", scaling_json(reader, config)},
               {"tie_word_embeddings", config.tie_word_embeddings},
               {"hidden_act", "silu"},
               {"attention_bias", config.attention_bias},
               {"dtype", dtype_name(dtype)},
               {"torch_dtype", dtype_name(dtype)},
               {"use_cache", true}};
  add_tokens(reader, json);
  const std::string_view type = family.model_type;
  if (type == "llama") {
    json["mlp_bias"] = config.mlp_bias;
    if (config.sliding_window > 0) {  // Mistral's files are "llama" too
      json["model_type"] = "mistral";
      json["architectures"] = Json::array({"MistralForCausalLM"});
      json["sliding_window"] = config.sliding_window;
    }
  }
  if (type == "gemma2" || type == "gemma3_text") add_gemma(reader, config, json);
  if (type == "smollm3") {
    Json ropes = Json::array();
    for (const bool turns : config.layer_ropes) ropes.push_back(turns ? 1 : 0);
    json["no_rope_layers"] = ropes;
    json["use_sliding_window"] = false;
  }
  return json;
}

}  // namespace qiao::convert
