// Any bytes as PEFT's adapter_config.json: parsed, or refused with an Error of one line.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "models/lora_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const qiao::LoraConfig config =
        qiao::parse_lora_config({reinterpret_cast<const char*>(data), size}, "fuzz");
    constexpr std::string_view kModule = "model.layers.0.self_attn.q_proj";
    QIAO_ASSERT(config.rank_of(kModule) >= 1);
    config.scale_of(kModule, config.rank);
    config.targets(kModule);
  } catch (const qiao::Error& e) {
    QIAO_ASSERT(std::string_view(e.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
