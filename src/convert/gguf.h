// Hugging Face directories as GGUF files, which llama.cpp reads.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "formats/model_files.h"

namespace qiao::convert {

// What a file's matrices are written as: "F32", "BF16", "F16", "Q8_0", "Q4_0", "Q4_K_M".
std::vector<std::string> gguf_kinds();

struct GgufOptions {
  std::string kind = "F16";
  int threads = 0;  // 0: as many as this process may use
};

// Metadata by llama.cpp's names, tokenizer and chat template with them; matrices in the dtypes that
// llama-quantize gives them, vectors in F32. Written beside and renamed. Throws Error(kUnsupported) naming
// what the format or llama.cpp's model of the family cannot say, before anything is written;
// Error(kInvalidInput) for a kind that is not one.
void write_gguf_model(const ModelFiles& files, const std::filesystem::path& out, const GgufOptions& options);

}  // namespace qiao::convert
