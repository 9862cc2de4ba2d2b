#include "train/model_directory.h"

#include "base/file.h"
#include "formats/quantization_config.h"
#include "formats/safetensors_write.h"
#include "tensor/floats.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostFileBytes = size_t{256} << 20;  // of a tokenizer, the largest

bool is_weight_file(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") ||
         name.ends_with(".bin") || name.ends_with(".gguf");
}

}  // namespace

void write_model_directory(const fs::path& folder, const fs::path& init, const ModelFiles& files,
                           const Parameters& parameters, const MasterOf& master) {
  std::vector<TensorToWrite> tensors;
  std::vector<std::byte> bytes;
  bool was_fp8 = false;
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    const TensorInfo& source = *files.find(tensor.name);
    const DType dtype = files.is_fp8(source) ? DType::kBF16 : source.dtype;
    was_fp8 |= files.is_fp8(source);
    tensors.push_back({tensor.name, dtype, tensor.shape, [&, dtype, i] {
                         const std::span<const float> values = master(i);
                         if (dtype == DType::kF32) return std::as_bytes(values);
                         bytes.resize(static_cast<size_t>(row_bytes(dtype, std::ssize(values))));
                         from_floats(values, dtype, bytes.data());
                         return std::span<const std::byte>(bytes);
                       }});
  }
  fs::create_directories(folder);
  for (const fs::directory_entry& entry : fs::directory_iterator(init)) {
    if (!entry.is_regular_file() || is_weight_file(entry.path())) continue;
    const fs::path name = entry.path().filename();
    if (was_fp8 && name == kQuantizationFile) continue;
    write_file_atomically(folder / name, was_fp8 && name == "config.json"
                                             ? dump_json(without_quantization(files.config()), 2) + "\n"
                                             : read_regular_file(entry.path(), kMostFileBytes));
  }
  write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
}

}  // namespace qiao::train
