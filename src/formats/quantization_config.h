// What a Hugging Face checkpoint says of how its matrices are quantized: quantization_config of config.json,
// or of its text_config. Any JSON may stand there: what is of another type than expected counts as absent,
// unless it is read.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "formats/gguf.h"

namespace qiao {

// What can be taken instead of weights that are not read, for messages.
inline constexpr std::string_view kReadableWeights =
    "take the model in floats, in FP8 (E4M3 with scales) or as a GGUF file";

// What one scale is for, in elements of a matrix.
struct ScaleBlock {
  int64_t rows = 1, columns = 1;
};

// weight_block_size, and block_structure or group_size of each of compressed-tensors' config_groups; empty
// where none is told. Throws Error(kInvalidInput) for a size that is not of whole numbers from 1 on.
std::vector<ScaleBlock> scale_blocks(const Json& config, std::string_view source);

// config.json of the same model in floats. Required: an object.
Json without_quantization(Json config);
// What ModelOpt says of it beside config.json: no file of a model in floats.
inline constexpr std::string_view kQuantizationFile = "hf_quant_config.json";

// Throws Error(kUnsupported) where products need more than numbers and scales: activations that are rotated
// first (transform_config), zero points of FP8 weights (symmetric false).
void check_quantization(const Json& config, std::string_view source);

// The end of a message about a tensor that is missing or of another type: how the matrices of the model are
// quantized, by the names of its tensors or else by quant_method, and what to do. Empty where nothing says
// that they are, or only FP8.
std::string quantization_advice(const Json& config, std::span<const TensorInfo> tensors);

}  // namespace qiao
