// In which dtype llama-quantize writes a tensor (llama.cpp, llama_tensor_get_type), for dense models without
// an importance matrix.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "models/config.h"
#include "tensor/dtype.h"

namespace qiao::convert {

struct GgufKind {
  std::string_view name;
  DType dtype;         // of most matrices
  uint32_t file_type;  // general.file_type
  bool mixed = false;  // Q4_K_M: more bits where they count
};
const std::vector<GgufKind>& gguf_kind_table();

// `name` is llama.cpp's, `layer` -1 outside the layers.
DType gguf_tensor_dtype(const GgufKind& kind, const DecoderConfig& config, std::string_view name,
                        int64_t layer, const std::vector<int64_t>& shape);

}  // namespace qiao::convert
