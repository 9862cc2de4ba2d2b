#include "formats/safetensors_write.h"

#include <cstring>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

namespace qiao {
namespace {

std::string header_of(std::span<const TensorToWrite> tensors,
                      const std::vector<std::pair<std::string, std::string>>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) {
    Json& texts = header["__metadata__"];
    for (const auto& [key, value] : metadata) texts[key] = value;
  }
  int64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    const int64_t end = offset + row_bytes(tensor.dtype, elements);
    QIAO_ASSERT(!header.contains(tensor.name));
    header[tensor.name] = {
        {"dtype", traits(tensor.dtype).name}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = dump_json(header);
  text.resize((text.size() + 7) / 8 * 8,
              ' ');  // data begins at a multiple of 8, as the format's own writer has it
  return text;
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata) {
  const std::string header = header_of(tensors, metadata);
  AtomicFile file(path);
  char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  file.write({length, sizeof(length)});
  file.write(header);
  for (const TensorToWrite& tensor : tensors) {
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    const std::span<const std::byte> bytes = tensor.bytes();
    QIAO_ASSERT(std::ssize(bytes) == row_bytes(tensor.dtype, elements));
    file.write({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  file.commit();
}

}  // namespace qiao
