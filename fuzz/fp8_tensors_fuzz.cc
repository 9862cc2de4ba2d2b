// Any bytes as an FP8 checkpoint: config.json up to the first zero byte, then a safetensors file. Refused
// with an Error of one line, or joined: each tensor has as many bytes as it says, of numbers.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "formats/fp8_tensors.h"
#include "formats/quantization_config.h"
#include "formats/safetensors.h"
#include "tensor/dequantize.h"

namespace {

void read(std::string_view config_text, std::span<const std::byte> file) {
  const qiao::Json config = qiao::parse_json(config_text, "config.json");
  qiao::SafetensorsHeader header =
      qiao::parse_safetensors(file, file.size(), "fuzz", qiao::TypePolicy::kListUnsupported);
  const std::string advice = qiao::quantization_advice(config, header.tensors);
  QIAO_ASSERT(advice.find('\n') == std::string::npos);
  const qiao::Fp8Tensors joined = qiao::Fp8Tensors::join(header.tensors, config, "fuzz");
  for (const qiao::TensorInfo& tensor : header.tensors) {
    const qiao::Fp8Tensors::Source* source = joined.find(tensor.name);
    if (source == nullptr) continue;
    QIAO_ASSERT(tensor.elements() == source->numbers.elements());
    std::vector<std::byte> bytes(tensor.bytes);
    joined.make(*source, tensor.dtype, file.subspan(source->numbers.offset, source->numbers.bytes),
                file.subspan(source->scales.offset, source->scales.bytes), bytes);
    std::vector<float> values(static_cast<size_t>(tensor.elements()));
    qiao::dequantize(tensor.dtype, bytes.data(), tensor.elements(), values.data());
    for (const float value : values) QIAO_ASSERT(std::isfinite(value));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t end = text.find('\0');
  if (end == std::string_view::npos) return 0;
  try {
    read(text.substr(0, end), {reinterpret_cast<const std::byte*>(data) + end + 1,
                               reinterpret_cast<const std::byte*>(data) + size});
  } catch (const qiao::Error& e) {
    QIAO_ASSERT(std::string_view(e.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
