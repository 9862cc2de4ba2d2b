#include "convert/gguf_metadata.h"

#include <array>
#include <cmath>

#include "base/error.h"
#include "base/quote.h"
#include "models/config_reader.h"
#include "models/families.h"

namespace qiao::convert {
namespace {

struct GgufFamily {
  std::string_view model_type, architecture;
};
constexpr std::array<GgufFamily, 8> kGgufFamilies = {{{"llama", "llama"},
                                                      {"mistral", "llama"},
                                                      {"qwen2", "qwen2"},
                                                      {"qwen3", "qwen3"},
                                                      {"gemma2", "gemma2"},
                                                      {"gemma3", "gemma3"},
                                                      {"gemma3_text", "gemma3"},
                                                      {"smollm3", "smollm3"}}};

class MetadataWriter {
 public:
  MetadataWriter(const ModelFiles& files, const DecoderConfig& config)
      : files_(files), config_(config), reader_(files), rope_(rope_object(reader_)) {
    std::string names;
    for (const GgufFamily& family : kGgufFamilies) {
      if (family.model_type == reader_.architecture()) architecture_ = family.architecture;
      names += fmt::format("{}{}", names.empty() ? "" : ", ", family.model_type);
    }
    if (architecture_.empty()) {
      throw_error(ErrorKind::kUnsupported, "{}: model_type {} is not written as a GGUF file; {} are",
                  reader_.source(), quote_text(reader_.architecture()), names);
    }
  }

  GgufWriteEntries write(uint32_t file_type) {
    entries_.emplace_back("general.architecture", std::string(architecture_));
    entries_.emplace_back("general.type", std::string("model"));
    entries_.emplace_back("general.name", files_.path().filename().string());
    entries_.emplace_back("general.file_type", file_type);
    entries_.emplace_back("general.quantization_version", uint32_t{2});
    const auto whole = [&](std::string_view key, int64_t value) { add(key, static_cast<uint32_t>(value)); };
    whole("block_count", config_.num_hidden_layers);
    whole("context_length", config_.max_position_embeddings);
    whole("embedding_length", config_.hidden_size);
    whole("feed_forward_length", config_.intermediate_size);
    whole("vocab_size", config_.vocabulary_size);
    whole("attention.head_count", config_.num_attention_heads);
    whole("attention.head_count_kv", config_.num_key_value_heads);
    whole("attention.key_length", config_.head_dim);
    whole("attention.value_length", config_.head_dim);
    add("attention.layer_norm_rms_epsilon", config_.rms_norm_eps);
    whole("rope.dimension_count", 2 * std::ssize(config_.rope.inverse_frequencies));
    add("rope.freq_base", static_cast<float>(theta()));
    write_scaling();
    write_family();
    return std::move(entries_);
  }

  std::vector<float> divisors() const {
    if (scaling_type() != "llama3") return {};
    const std::vector<float>& scaled = config_.rope.inverse_frequencies;
    std::vector<float> made;
    for (size_t i = 0; i < scaled.size(); ++i) {
      const double plain = std::pow(theta(), -static_cast<double>(i) / static_cast<double>(scaled.size()));
      made.push_back(static_cast<float>(plain / static_cast<double>(scaled[i])));
    }
    return made;
  }

 private:
  void add(std::string_view key, GgufWriteValue value) {
    entries_.emplace_back(fmt::format("{}.{}", architecture_, key), std::move(value));
  }
  [[noreturn]] void refuse(std::string_view key, std::string_view value, std::string_view expected) const {
    throw_error(ErrorKind::kUnsupported, "{}: {} is {}; a GGUF file of {} can only say {}", reader_.source(),
                key, value, architecture_, expected);
  }

  // rope_parameters, or rope_scaling; of the global layers where kinds of layers have their own.
  static std::optional<ConfigReader> rope_object(const ConfigReader& reader) {
    auto scope = reader.find_object("rope_parameters");
    if (!scope) scope = reader.find_object("rope_scaling");
    if (!scope) return std::nullopt;
    if (auto full = scope->find_object("full_attention")) return full;
    return scope;
  }
  std::optional<double> rope_number(std::string_view key) const {
    return rope_ ? rope_->find_number({key, ""}, 0.0, 1e18) : std::nullopt;
  }
  double theta() const {
    if (const auto value = rope_number("rope_theta")) return *value;
    const double absent = find_family(reader_).defaults.rope_theta;
    return reader_.find_number({"rope_theta", ""}, 1.001, 1e18).value_or(absent);
  }
  double local_theta() const {
    auto scope = reader_.find_object("rope_parameters");
    const auto sliding = scope ? scope->find_object("sliding_attention") : std::nullopt;
    const auto own = sliding ? sliding->find_number({"rope_theta", ""}, 1.001, 1e18) : std::nullopt;
    if (own) return *own;
    const double absent = find_family(reader_).defaults.local_rope_theta;
    return reader_.find_number({"rope_local_base_freq", ""}, 1.001, 1e18).value_or(absent);
  }
  std::string scaling_type() const {
    if (!rope_) return "default";
    const auto older = rope_->find_string({"type", ""});
    return rope_->find_string({"rope_type", ""}).value_or(older.value_or("default"));
  }

  void write_scaling() {
    const std::string type = scaling_type();
    if (type == "default" || type == "llama3") return;  // llama3: see divisors()
    if (type != "linear" && type != "yarn")
      refuse("rope_type", quote_text(type), "default, linear, llama3 or yarn");
    add("rope.scaling.type", type);
    const double original = rope_number("original_max_position_embeddings")
                                .value_or(static_cast<double>(config_.max_position_embeddings));
    const double grown = static_cast<double>(config_.max_position_embeddings) / original;
    add("rope.scaling.factor", static_cast<float>(rope_number("factor").value_or(grown)));
    if (type == "linear") return;
    for (const char* key : {"mscale", "mscale_all_dim"})
      if (rope_number(key).value_or(0) != 0) refuse(key, fmt::to_string(*rope_number(key)), "0");
    add("rope.scaling.original_context_length", static_cast<uint32_t>(original));
    if (const auto fast = rope_number("beta_fast"))
      add("rope.scaling.yarn_beta_fast", static_cast<float>(*fast));
    if (const auto slow = rope_number("beta_slow"))
      add("rope.scaling.yarn_beta_slow", static_cast<float>(*slow));
    if (const auto factor = rope_number("attention_factor"))
      add("rope.scaling.yarn_attn_factor", static_cast<float>(*factor));
  }

  void write_family() {
    if (architecture_.starts_with("gemma")) return write_gemma();
    if (architecture_ == "smollm3") {
      for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer)
        if (config_.layer_ropes[static_cast<size_t>(layer)] != ((layer + 1) % 4 != 0))
          refuse("no_rope_layers", "another pattern", "that each fourth layer has none");
    }
    if (config_.sliding_window == 0) return;
    if (architecture_ != "llama") refuse("sliding_window", fmt::to_string(config_.sliding_window), "none");
    add("attention.sliding_window", static_cast<uint32_t>(config_.sliding_window));
  }

  void write_gemma() {
    const bool is_largest = config_.num_hidden_layers == (architecture_ == "gemma2" ? 46 : 62);
    const int64_t divided = is_largest ? config_.hidden_size / config_.num_attention_heads : config_.head_dim;
    if (config_.attention_scale != static_cast<float>(1.0 / std::sqrt(static_cast<double>(divided))))
      refuse("query_pre_attn_scalar",
             fmt::format("{:.6g}", 1.0 / std::pow(static_cast<double>(config_.attention_scale), 2)),
             fmt::to_string(divided));
    if (config_.attn_logit_softcapping > 0) add("attn_logit_softcapping", config_.attn_logit_softcapping);
    if (config_.final_logit_softcapping > 0) add("final_logit_softcapping", config_.final_logit_softcapping);
    if (config_.sliding_window == 0) return;
    add("attention.sliding_window", static_cast<uint32_t>(config_.sliding_window));
    const int64_t usual = architecture_ == "gemma2" ? 2 : 6;
    const int64_t period = slide_period();
    if (architecture_ == "gemma2" && period != usual)
      refuse("layer_types", "another pattern", "each second layer to slide");
    if (period != usual) add("attention.sliding_window_pattern", static_cast<uint32_t>(period));
    if (architecture_ == "gemma3") add("rope.freq_base_swa", static_cast<float>(local_theta()));
  }

  // Each how manieth layer is global.
  int64_t slide_period() const {
    const int64_t layers = config_.num_hidden_layers;
    for (int64_t period = 1; period <= layers + 1; ++period) {
      bool fits = true;
      for (int64_t layer = 0; layer < layers; ++layer)
        fits = fits && config_.layer_slides[static_cast<size_t>(layer)] == ((layer + 1) % period != 0);
      const int64_t usual = architecture_ == "gemma2" ? 2 : 6;
      // Fewer layers than a period: all slide, whatever its length.
      if (fits) return period > layers ? std::max(period, usual) : period;
    }
    refuse("layer_types", "another pattern", "that each layer of a period's end is global");
  }

  const ModelFiles& files_;
  const DecoderConfig& config_;
  ConfigReader reader_;
  std::optional<ConfigReader> rope_;
  std::string_view architecture_;
  GgufWriteEntries entries_;
};

}  // namespace

GgufWriteEntries gguf_metadata(const ModelFiles& files, const DecoderConfig& config, uint32_t file_type) {
  return MetadataWriter(files, config).write(file_type);
}

std::vector<float> gguf_rope_divisors(const ModelFiles& files, const DecoderConfig& config) {
  return MetadataWriter(files, config).divisors();
}

}  // namespace qiao::convert
