// Models as Hugging Face directories: made of GGUF files, and with LoRA adapters merged into them.
#pragma once

#include <filesystem>
#include <optional>

#include "formats/model_files.h"
#include "models/lora_files.h"

namespace qiao::convert {

struct HuggingFaceOptions {
  // F32, F16 or BF16, of every tensor of floats; absent: each as it is, BF16 where it is FP8 or comes out of
  // a GGUF file.
  std::optional<DType> dtype;
  const LoraFiles* lora = nullptr;  // W + scale * B A in its modules, summed in float64 and rounded once
};

// Writes config.json, the tokenizer's files, generation_config.json and model.safetensors; of a directory
// every file that holds no weights byte for byte, and every tensor too that neither an adapter nor a dtype
// changes. Each file is written beside and renamed, the weights last. Throws Error naming what the other
// format cannot say (a family, a pre-tokenizer), the tensor or the adapter's module, before anything is
// written.
void write_hugging_face(const ModelFiles& files, const std::filesystem::path& out,
                        const HuggingFaceOptions& options = {});

}  // namespace qiao::convert
