// safetensors: one file's header, and the set of shards that a Hugging Face directory holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file.h"
#include "formats/gguf.h"

namespace qiao {

struct SafetensorsHeader {
  std::vector<std::pair<std::string, std::string>> metadata;  // "__metadata__", in file order
  std::vector<TensorInfo> tensors;                            // by offset; offsets are of the file
  uint64_t header_bytes = 0;                                  // length field and JSON
};

// Parses the header out of `bytes`, the file's beginning (at least the whole header); `file_bytes` is the
// file's length, against which every offset is held. As the format's home demands, the tensors must cover the
// data section without overlap, hole or remainder. BOOL reads as U8. Throws Error(kInvalidInput /
// kUnsupported / kTooLarge).
SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, uint64_t file_bytes,
                                    std::string_view source,
                                    TypePolicy policy = TypePolicy::kRefuseUnsupported);

struct SafetensorsFiles {
  std::vector<std::pair<std::string, std::string>> metadata;  // of the first file
  std::vector<TensorInfo> tensors;                            // by file, then offset
  std::vector<MappedFile> files;
};

// One .safetensors file.
SafetensorsFiles open_safetensors(const std::filesystem::path& file, TypePolicy policy);

// The shards that an index (model.safetensors.index.json) names, beside it; each tensor comes from the shard
// that its weight_map says. Throws Error naming the shard that is missing or the tensor that its shard lacks.
SafetensorsFiles open_safetensors_index(const std::filesystem::path& index, TypePolicy policy);

}  // namespace qiao
