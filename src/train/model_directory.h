// The trained model as a Hugging Face directory, which serves at once.
#pragma once

#include <filesystem>

#include "formats/model_files.h"
#include "train/parameters.h"

namespace qiao::train {

// model.safetensors with the names, shapes and dtypes of `init`'s tensors (BF16 where it has FP8), and every
// other file of `init` that is no weight (configuration, tokenizer, chat template) byte for byte, but for
// what they say of FP8. Each file is written beside and renamed, the weights last. Throws Error(kIo).
void write_model_directory(const std::filesystem::path& folder, const std::filesystem::path& init,
                           const ModelFiles& files, const Parameters& parameters, const MasterOf& master);

}  // namespace qiao::train
