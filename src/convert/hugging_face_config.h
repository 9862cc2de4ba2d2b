// config.json of a model that lies in a GGUF file.
#pragma once

#include "base/json.h"
#include "models/config.h"

namespace qiao::convert {

// Throws Error(kUnsupported) for a family, or a rotary scaling, that is not written: with those that are.
void check_convertible(const ModelFiles& files, const DecoderConfig& config);

// By Transformers' names; `dtype` is what the weights are written in. Reads back as the same DecoderConfig.
Json config_json(const ModelFiles& files, const DecoderConfig& config, DType dtype);

}  // namespace qiao::convert
