// GGUF v2 and v3 (the format's specification: docs/gguf.md of ggml), one file or a split set, memory-mapped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "tensor/dtype.h"

namespace qiao {

// One metadata value. Integers of every width are widened; arrays are homogeneous. A nested array is refused.
using GgufArray = std::variant<std::vector<uint64_t>, std::vector<int64_t>, std::vector<double>,
                               std::vector<bool>, std::vector<std::string>>;
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string, GgufArray>;

// Limits of one file, far above any real one: what is read into memory stays within a small multiple of the
// file, and a hostile count costs nothing.
inline constexpr uint64_t kMaxGgufEntries = uint64_t{1} << 16;
inline constexpr uint64_t kMaxGgufArrayElements = uint64_t{1} << 24;  // of all arrays together
inline constexpr uint64_t kMaxTensors = uint64_t{1} << 20;

// Metadata in file order, with typed look-ups. `find_*` give nothing where the key is absent and throw
// Error(kInvalidInput), naming the file and key, where it is there with another type or out of range.
class GgufMetadata {
 public:
  std::string source;  // the file, for messages
  std::vector<std::pair<std::string, GgufValue>> entries;

  const GgufValue* find(std::string_view key) const;
  std::optional<int64_t> find_int(std::string_view key) const;
  std::optional<double> find_double(std::string_view key) const;  // integers convert
  std::optional<bool> find_bool(std::string_view key) const;
  const std::string* find_string(std::string_view key) const;
  const std::vector<std::string>* find_strings(std::string_view key) const;
  std::optional<std::vector<double>> find_doubles(std::string_view key) const;  // any numeric or bool array
  std::optional<std::vector<int64_t>> find_ints(std::string_view key) const;    // any integer or bool array
};

// Where a tensor lies. Shape outermost first (GGUF stores it innermost first: reversed on reading), so that a
// linear layer's weight is [N, K] as in PyTorch.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  size_t file = 0;      // index into the set of files
  uint64_t offset = 0;  // of the first byte in that file
  uint64_t bytes = 0;
  // The file's own name of an element type that Qiao cannot compute with ("IQ2_XXS"); dtype then says
  // nothing. Only TypePolicy::kListUnsupported lets such a tensor through.
  std::string unsupported;

  int64_t elements() const;
  std::string_view type_name() const { return unsupported.empty() ? traits(dtype).name : unsupported; }
};

enum class TypePolicy {
  kRefuseUnsupported,  // Error(kUnsupported) naming tensor and type
  kListUnsupported,    // such tensors are listed, for inspection
};

// Parses the header of a GGUF file out of memory: metadata and tensor table, all sizes checked against
// `bytes` before use. `source` is for messages. This is what the fuzzer calls. Throws Error(kInvalidInput /
// kUnsupported / kTooLarge).
struct GgufHeader {
  uint32_t version = 0;
  GgufMetadata metadata;
  std::vector<TensorInfo> tensors;  // offsets are of the file, not of the data section
  uint64_t header_bytes = 0;        // what was parsed: magic to the end of the tensor table
};
GgufHeader parse_gguf(std::span<const std::byte> bytes, std::string_view source,
                      TypePolicy policy = TypePolicy::kRefuseUnsupported);

// An open GGUF model. Reading is safe from any thread.
class GgufFile {
 public:
  // `path` is a single file or any part of a split set (…-00001-of-00003.gguf): the other parts are found
  // beside it.
  static std::shared_ptr<GgufFile> open(const std::filesystem::path& path,
                                        TypePolicy policy = TypePolicy::kRefuseUnsupported);

  const GgufMetadata& metadata() const { return metadata_; }
  uint32_t version() const { return version_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<MappedFile>& files() const { return files_; }

 private:
  uint32_t version_ = 0;
  GgufMetadata metadata_;
  std::vector<TensorInfo> tensors_;
  std::vector<MappedFile> files_;
};

}  // namespace qiao
