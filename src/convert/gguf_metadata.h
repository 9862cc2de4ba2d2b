// What a GGUF file says of a model that lies in a Hugging Face directory, the tokenizer apart.
#pragma once

#include <string_view>
#include <vector>

#include "formats/gguf_write.h"
#include "models/config.h"

namespace qiao::convert {

// general.* and the architecture's keys. Throws Error(kUnsupported) for a family or a value that llama.cpp's
// files do not have.
GgufWriteEntries gguf_metadata(const ModelFiles& files, const DecoderConfig& config, uint32_t file_type);

// Divisors of the rotary frequencies (rope_freqs.weight); empty where the metadata say all of them.
std::vector<float> gguf_rope_divisors(const ModelFiles& files, const DecoderConfig& config);

}  // namespace qiao::convert
