#include "models/rope_config.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/quote.h"
#include "models/rope_frequencies.h"

namespace qiao {
namespace {

using Kind = RopeScaling::Kind;

constexpr double kMinTheta = 1.001, kMaxTheta = 1e18;
constexpr double kMinFactor = 1e-3, kMaxFactor = 1e6;

std::vector<float> to_floats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

// Divisors of frequencies that lie in the file as a tensor. Empty where there is none.
std::vector<float> read_divisors(const ModelFiles& files, std::string_view name, int64_t count) {
  const TensorInfo* tensor = files.find(name);
  if (tensor == nullptr) return {};
  if (tensor->dtype != DType::kF32 || tensor->shape != std::vector<int64_t>{count}) {
    throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}[{}]; F32[{}] was expected",
                files.path().string(), name, tensor->type_name(), fmt::join(tensor->shape, ", "), count);
  }
  std::vector<float> values(static_cast<size_t>(count));
  std::memcpy(values.data(), files.bytes(*tensor).data(), values.size() * sizeof(float));
  for (const float value : values) {
    if (!(value >= kMinFactor && value <= kMaxFactor)) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} holds {}; numbers from {} to {} were expected",
                  files.path().string(), name, value, kMinFactor, kMaxFactor);
    }
  }
  return values;
}

int64_t check_rotated(const ConfigReader& reader, ConfigKey key, int64_t rotated, int64_t head_dim) {
  if (rotated < 2 || rotated % 2 != 0 || rotated > head_dim) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: {} makes {} dimensions of a head rotate; an even number from 2 to {} was expected",
                reader.source(), reader.name(key), rotated, head_dim);
  }
  return rotated;
}

struct HuggingFaceRope {
  const ConfigReader& top;    // the model's object
  const ConfigReader* scope;  // rope_parameters or rope_scaling, or the part of it for one kind of layer
  const DecoderConfig& config;
  const Family::Defaults& defaults;

  std::optional<double> find(std::string_view key, double low, double high) const {
    return scope == nullptr ? std::nullopt : scope->find_number({key, ""}, low, high);
  }
  double need(std::string_view key, double low, double high) const {
    const auto value = find(key, low, high);
    if (!value) scope->refuse_missing({key, ""});
    return *value;
  }
  std::vector<float> need_factors(std::string_view key, int64_t count) const {
    const auto list = scope->find_numbers({key, ""}, kMinFactor, kMaxFactor);
    if (!list) scope->refuse_missing({key, ""});
    if (static_cast<int64_t>(list->size()) != count) {
      scope->refuse({key, ""}, fmt::format("a list of {}", list->size()),
                    fmt::format("one of {}, half the dimensions that rotate,", count));
    }
    return to_floats(*list);
  }

  int64_t rotated() const {
    if (!defaults.partial_rotary)
      return check_rotated(top, {"head_dim", ""}, config.head_dim, config.head_dim);
    const ConfigKey key = {"partial_rotary_factor", ""};
    auto share = find(key.hf, 0.0, 1.0);
    if (!share) share = top.find_number(key, 0.0, 1.0);
    const double dims = static_cast<double>(config.head_dim) * share.value_or(1.0);
    return check_rotated(top, share ? key : ConfigKey{"head_dim", ""}, static_cast<int64_t>(dims),
                         config.head_dim);
  }

  RopeScaling read(double theta) const {
    RopeScaling s;
    s.theta = find("rope_theta", kMinTheta, kMaxTheta).value_or(theta);
    std::string type = "default";
    if (scope != nullptr) {
      const auto older = scope->find_string({"type", ""});
      type = scope->find_string({"rope_type", ""}).value_or(older.value_or(type));
    }
    if (type == "default") return s;
    constexpr std::string_view kOriginal = "original_max_position_embeddings";
    const double positions = static_cast<double>(config.max_position_embeddings);
    const double most = static_cast<double>(kMaxPositions);
    auto original = top.find_number({kOriginal, ""}, 2, most);
    if (!original) original = find(kOriginal, 2, most);
    s.original_context = original.value_or(positions);
    s.attention_factor = find("attention_factor", 0.0, 1e3);
    const double grown = std::clamp(positions / s.original_context, kMinFactor, kMaxFactor);
    if (type == "su" || type == "longrope" || (defaults.yarn_is_longrope && type == "yarn")) {
      s.kind = Kind::kLongRope;
      s.factor = find("factor", kMinFactor, kMaxFactor).value_or(grown);
      s.short_factors = need_factors("short_factor", rotated() / 2);
      s.long_factors = need_factors("long_factor", rotated() / 2);
    } else if (type == "linear") {
      s.kind = Kind::kLinear;
      s.factor = need("factor", kMinFactor, kMaxFactor);
    } else if (type == "dynamic") {
      const auto alpha = find("alpha", 0.0, 1e12);
      s.kind = alpha.value_or(0.0) > 0 ? Kind::kNtkAlpha : Kind::kDynamic;
      s.alpha = alpha.value_or(1.0);
      if (s.kind == Kind::kDynamic) s.factor = need("factor", 1.0, kMaxFactor);
      if (rotated() < 4) check_rotated(top, {"head_dim", ""}, 0, config.head_dim);
    } else if (type == "yarn") {
      s.kind = Kind::kYarn;
      s.factor = find("factor", kMinFactor, kMaxFactor).value_or(grown);
      s.beta_fast = find("beta_fast", 1e-3, 1e6).value_or(s.beta_fast);
      s.beta_slow = find("beta_slow", 1e-3, 1e6).value_or(s.beta_slow);
      s.mscale = find("mscale", 0.0, 1e3).value_or(0.0);
      s.mscale_all_dim = find("mscale_all_dim", 0.0, 1e3).value_or(0.0);
      s.truncate = scope->find_flag({"truncate", ""}).value_or(true);
    } else if (type == "llama3") {
      s.kind = Kind::kLlama3;
      s.factor = need("factor", kMinFactor, kMaxFactor);
      s.low_freq_factor = need("low_freq_factor", 1e-3, 1e6);
      s.high_freq_factor = need("high_freq_factor", 1e-3, 1e6);
      if (s.high_freq_factor <= s.low_freq_factor) {
        scope->refuse({"high_freq_factor", ""}, fmt::to_string(s.high_freq_factor),
                      fmt::format("more than low_freq_factor ({})", s.low_freq_factor));
      }
    } else {
      throw_error(
          ErrorKind::kUnsupported,
          "{}: {} {} is not supported; supported are: default, linear, dynamic, llama3, yarn, longrope",
          top.source(), scope->name({"rope_type", ""}), quote_text(type));
    }
    return s;
  }
};

void read_hugging_face(const ConfigReader& reader, const Family& family, int64_t context,
                       DecoderConfig& config) {
  auto scope = reader.find_object("rope_parameters");
  if (!scope) scope = reader.find_object("rope_scaling");
  const auto full = scope ? scope->find_object("full_attention") : std::nullopt;
  const auto sliding = scope ? scope->find_object("sliding_attention") : std::nullopt;
  const ConfigReader* global = full ? &*full : (scope && !sliding ? &*scope : nullptr);
  const ConfigReader* local = sliding ? &*sliding : nullptr;

  const double theta =
      reader.find_number({"rope_theta", ""}, kMinTheta, kMaxTheta).value_or(family.defaults.rope_theta);
  const HuggingFaceRope rope{reader, global, config, family.defaults};
  config.rope = make_rope_table(rope.read(theta), rope.rotated(), context, config.max_position_embeddings);
  if (local == nullptr && family.defaults.local_rope_theta == 0) return;
  const double local_theta =
      reader.find_number({"rope_local_base_freq", ""}, kMinTheta, kMaxTheta)
          .value_or(family.defaults.local_rope_theta != 0 ? family.defaults.local_rope_theta : theta);
  const HuggingFaceRope local_rope{reader, local, config, family.defaults};
  config.rope_local = make_rope_table(local_rope.read(local_theta), local_rope.rotated(), context,
                                      config.max_position_embeddings);
}

RopeScaling read_gguf_scaling(const ConfigReader& reader, int64_t rotated, const DecoderConfig& config) {
  const auto find = [&](std::string_view key, double low, double high) {
    return reader.find_number({"", key}, low, high);
  };
  RopeScaling s;
  s.theta = find("rope.freq_base", kMinTheta, kMaxTheta).value_or(10000.0);
  const double positions = static_cast<double>(config.max_position_embeddings);
  s.original_context =
      find("rope.scaling.original_context_length", 2, static_cast<double>(kMaxPositions)).value_or(positions);
  const ConfigKey type_key = {"", "rope.scaling.type"};
  const std::string type = reader.find_string(type_key).value_or("linear");
  auto factor = find("rope.scaling.factor", 0.0, kMaxFactor);
  if (!factor) factor = find("rope.scale_linear", 0.0, kMaxFactor);  // its older name
  s.factor = factor.value_or(0.0) == 0.0 ? 1.0 : std::max(*factor, kMinFactor);
  const auto attention = find("rope.scaling.attn_factor", 0.0, 1e3);

  s.short_factors = read_divisors(reader.files(), "rope_factors_short.weight", rotated / 2);
  s.long_factors = read_divisors(reader.files(), "rope_factors_long.weight", rotated / 2);
  s.divisors = read_divisors(reader.files(), "rope_freqs.weight", rotated / 2);
  if (type == "yarn") {
    s.kind = Kind::kYarn;
    s.beta_fast = find("rope.scaling.yarn_beta_fast", 1e-3, 1e6).value_or(s.beta_fast);
    s.beta_slow = find("rope.scaling.yarn_beta_slow", 1e-3, 1e6).value_or(s.beta_slow);
    // Converters write Transformers' attention_factor here; 1 is what other writers put for "none".
    const double written = find("rope.scaling.yarn_attn_factor", 0.0, 1e3).value_or(1.0);
    if (written != 1.0) s.attention_factor = written;
  } else if (!s.short_factors.empty() || !s.long_factors.empty()) {
    s.kind = Kind::kLongRope;
    s.attention_factor = attention.value_or(1.0);
    if (s.short_factors.empty() || s.long_factors.empty()) {
      throw_error(ErrorKind::kInvalidInput,
                  "{}: tensors rope_factors_short.weight and rope_factors_long.weight "
                  "belong together; one is missing",
                  reader.source());
    }
  } else if (!s.divisors.empty()) {
    s.kind = Kind::kDivisors;
  } else if (type == "linear") {
    s.kind = s.factor == 1.0 ? Kind::kDefault : Kind::kLinear;
  } else if (type != "none" && type != "longrope") {
    reader.refuse(type_key, quote_text(type), "none, linear, yarn or longrope");
  }
  return s;
}

void read_gguf(const ConfigReader& reader, const Family& family, int64_t context, DecoderConfig& config) {
  const ConfigKey key = {"", "rope.dimension_count"};
  const int64_t written = reader.find_integer(key, 0, kMaxHeadDim).value_or(config.head_dim);
  const int64_t rotated = check_rotated(reader, key, written, config.head_dim);
  config.rope = make_rope_table(read_gguf_scaling(reader, rotated, config), rotated, context,
                                config.max_position_embeddings);
  const auto theta = reader.find_number({"", "rope.freq_base_swa"}, kMinTheta, kMaxTheta);
  if (!theta && family.defaults.local_rope_theta == 0) return;
  RopeScaling local;  // sliding layers are short enough to stay unscaled
  local.theta = theta.value_or(family.defaults.local_rope_theta);
  config.rope_local = make_rope_table(local, rotated, context, config.max_position_embeddings);
}

}  // namespace

void read_rope(const ConfigReader& reader, const Family& family, int64_t context, DecoderConfig& config) {
  const int64_t used = context > 0 ? context : config.max_position_embeddings;
  if (reader.gguf()) {
    config.rope_layout = family.gguf_rope;
    read_gguf(reader, family, used, config);
  } else {
    read_hugging_face(reader, family, used, config);
  }
}

}  // namespace qiao
