// Any bytes as a safetensors file: parsed, or refused with an Error; what is parsed lies inside the bytes.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  for (const auto policy : {qiao::TypePolicy::kRefuseUnsupported, qiao::TypePolicy::kListUnsupported}) {
    try {
      const qiao::SafetensorsHeader header = qiao::parse_safetensors(bytes, size, "fuzz", policy);
      for (const qiao::TensorInfo& tensor : header.tensors) {
        QIAO_ASSERT(tensor.offset <= size && tensor.bytes <= size - tensor.offset);
        QIAO_ASSERT(tensor.elements() >= 0);
      }
    } catch (const qiao::Error& e) {
      QIAO_ASSERT(std::string_view(e.what()).find('\n') == std::string_view::npos);
    }
  }
  return 0;
}
