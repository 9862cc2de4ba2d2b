// Writes a GGUF file, version 3, as gguf.h reads it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "formats/safetensors_write.h"

namespace qiao {

// A value in the type that the file gets: readers of the format's home take no other integer for a key.
using GgufWriteValue = std::variant<uint32_t, int32_t, float, bool, std::string, std::vector<std::string>,
                                    std::vector<int32_t>, std::vector<float>>;
using GgufWriteEntries = std::vector<std::pair<std::string, GgufWriteValue>>;

// Beside `path`, synced and renamed over it, as write_safetensors. Tensors: shapes outermost first, any dtype
// that a GGUF file may have, rows of whole blocks.
void write_gguf(const std::filesystem::path& path, const GgufWriteEntries& metadata,
                std::span<const TensorToWrite> tensors);

}  // namespace qiao
