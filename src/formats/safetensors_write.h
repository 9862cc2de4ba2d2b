// Writes a safetensors file (https://github.com/huggingface/safetensors), as safetensors.h reads it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tensor/dtype.h"

namespace qiao {

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;  // F32, F16, BF16 or U8
  std::vector<int64_t> shape;
  // Called once, in order: the bytes, row-major; valid until the next call.
  std::function<std::span<const std::byte>()> bytes;
};

// Beside `path`, synced and renamed over it: after a crash there is the old file or the new one, whole.
// Throws Error(kIo) naming the path and the system's reason, and leaves nothing behind.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata = {});

}  // namespace qiao
