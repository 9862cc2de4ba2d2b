// The element types that GGUF files name by number.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "tensor/dtype.h"

namespace qiao {

struct GgmlType {
  std::string_view name;
  int block_elements = 0;
  int block_bytes = 0;         // 0: the type was taken out of the format again
  std::optional<DType> dtype;  // nothing: known, but Qiao cannot compute with it
};

// Nothing where no published version of the format gives the number a meaning.
std::optional<GgmlType> ggml_type(uint32_t number);

}  // namespace qiao
