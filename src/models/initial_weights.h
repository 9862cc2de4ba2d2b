// A model to train: its files, or weights drawn at random where a directory has a configuration alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "formats/model_files.h"

namespace qiao {

// As ModelFiles::open where there are weights. Else as Transformers begins: matrices and embeddings normal
// with mean 0 and initializer_range as deviation (an embedding's padding row 0), biases 0, norms 1; of the
// configuration's dtype, F32 where it names none. Each number is drawn from `seed`, its tensor's name and its
// place alone. `options`: but for need_weights. Throws Error(kUnsupported) for a model whose tensors this
// cannot list.
std::shared_ptr<ModelFiles> open_or_initialize(const std::filesystem::path& path, uint64_t seed,
                                               ModelOpenOptions options = {});

}  // namespace qiao
