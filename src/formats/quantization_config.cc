#include "formats/quantization_config.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/quote.h"
#include "tensor/dtype.h"

namespace qiao {
namespace {

// Ends of names of the tensors that other kinds of quantized matrices have, as their tools write them.
struct QuantizedKind {
  std::string_view end, name;
};
constexpr std::array<QuantizedKind, 11> kQuantizedKinds = {{
    {".qweight", "GPTQ or AWQ"},
    {".weight_packed", "compressed-tensors in packed integers or FP4"},
    {".weight_scale_2", "NVFP4"},
    {".absmax", "bitsandbytes"},
    {".SCB", "bitsandbytes"},
    {".weight_scb", "bitsandbytes"},
    {"_proj_blocks", "MXFP4"},
    {".W_q", "HQQ"},
    {".codebooks", "AQLM"},
    {".weight_scales", "EETQ"},
    {".weight._data", "Quanto"},
}};

// Those of quant_method whose FP8 is read.
constexpr std::array<std::string_view, 5> kFp8Methods = {"fp8", "fbgemm_fp8", "compressed-tensors",
                                                         "modelopt", "quark"};

[[noreturn]] void refuse_size(std::string_view source, std::string_view key, const Json& value,
                              std::string_view expected) {
  throw_error(ErrorKind::kInvalidInput, "{}: config.json: {} is {}; {} expected", source, key,
              quote_text(dump_json(value), 40), expected);
}

bool is_size(const Json& number) {
  return number.is_number_unsigned() && number.get<uint64_t>() >= 1 && number.get<uint64_t>() <= 1u << 24;
}

ScaleBlock pair_of(std::string_view source, std::string_view key, const Json& value) {
  if (!value.is_array() || value.size() != 2 || !is_size(value[0]) || !is_size(value[1]))
    refuse_size(source, key, value, "two whole numbers from 1 on were");
  return {value[0].get<int64_t>(), value[1].get<int64_t>()};
}

// nullptr: absent, null, or not of an object.
const Json* member(const Json* object, const char* key) {
  if (object == nullptr || !object->is_object()) return nullptr;
  const auto found = object->find(key);
  return found == object->end() || found->is_null() ? nullptr : &*found;
}

const Json* quantization_of(const Json& config) {
  const Json* own = member(&config, "quantization_config");
  return own != nullptr ? own : member(member(&config, "text_config"), "quantization_config");
}

// "weights" of each of config_groups.
std::vector<const Json*> group_weights(const Json* quantization) {
  std::vector<const Json*> weights;
  const Json* groups = member(quantization, "config_groups");
  if (groups == nullptr || !groups->is_object()) return weights;
  for (const auto& [name, group] : groups->items())
    if (const Json* own = member(&group, "weights")) weights.push_back(own);
  return weights;
}

bool says(const Json* value, std::string_view text) {
  return value != nullptr && value->is_string() && value->get_ref<const std::string&>() == text;
}

// Whether one of its transforms is of what a layer takes or keeps: those of weights alone lie in the weights.
bool rotates_activations(const Json* transforms) {
  const Json* groups = member(transforms, "config_groups");
  if (groups == nullptr || !groups->is_object()) return false;
  for (const auto& [name, group] : groups->items()) {
    const Json* applied = member(&group, "apply");
    if (applied == nullptr || !applied->is_array()) continue;
    for (const Json& each : *applied) {
      const Json* location = member(&each, "location");
      if (!says(location, "weight_input") && !says(location, "weight_output")) return true;
    }
  }
  return false;
}

}  // namespace

std::vector<ScaleBlock> scale_blocks(const Json& config, std::string_view source) {
  const Json* quantization = quantization_of(config);
  if (const Json* size = member(quantization, "weight_block_size"))
    return {pair_of(source, "quantization_config.weight_block_size", *size)};
  std::vector<ScaleBlock> blocks;
  for (const Json* weights : group_weights(quantization)) {
    constexpr std::string_view kKey = "quantization_config.config_groups.weights.";
    const Json* strategy = member(weights, "strategy");
    if (const Json* structure = member(weights, "block_structure")) {
      blocks.push_back(pair_of(source, fmt::format("{}block_structure", kKey), *structure));
    } else if (const Json* size = member(weights, "group_size");
               size != nullptr &&
               (strategy == nullptr ? is_size(*size) : says(strategy, "group"))) {  // ModelOpt tells none
      if (!is_size(*size))
        refuse_size(source, fmt::format("{}group_size", kKey), *size, "a whole number from 1 on was");
      blocks.push_back({1, size->get<int64_t>()});
    }
  }
  return blocks;
}

void check_quantization(const Json& config, std::string_view source) {
  const Json* quantization = quantization_of(config);
  if (rotates_activations(member(quantization, "transform_config"))) {
    throw_error(ErrorKind::kUnsupported,
                "{}: config.json: quantization_config.transform_config rotates activations, which is not "
                "computed; {}",
                source, kReadableWeights);
  }
  for (const Json* weights : group_weights(quantization)) {
    const Json* symmetric = member(weights, "symmetric");
    const bool zero_points = symmetric != nullptr && symmetric->is_boolean() && !symmetric->get<bool>();
    if (!zero_points || !says(member(weights, "type"), "float")) continue;
    throw_error(ErrorKind::kUnsupported,
                "{}: config.json: quantization_config.config_groups.weights.symmetric is false: zero points "
                "of FP8 are not computed; {}",
                source, kReadableWeights);
  }
}

Json without_quantization(Json config) {
  config.erase("quantization_config");
  if (const auto text = config.find("text_config"); text != config.end() && text->is_object())
    text->erase("quantization_config");
  return config;
}

std::string quantization_advice(const Json& config, std::span<const TensorInfo> tensors) {
  const auto advice = [](std::string_view kind) {
    return fmt::format("; the model is quantized by {}, which is not read: {}", kind, kReadableWeights);
  };
  for (const QuantizedKind& kind : kQuantizedKinds) {
    if (std::ranges::any_of(tensors, [&](const TensorInfo& t) { return t.name.ends_with(kind.end); }))
      return advice(kind.name);
  }
  const Json* method = member(quantization_of(config), "quant_method");
  if (method == nullptr || !method->is_string()) return "";
  const auto& text = method->get_ref<const std::string&>();
  if (std::ranges::find(kFp8Methods, text) != kFp8Methods.end()) return "";
  return advice(fmt::format("quant_method {}", quote_text(text)));
}

}  // namespace qiao
