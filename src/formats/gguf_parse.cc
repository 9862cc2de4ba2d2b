// The parser of one GGUF file's header. Every length is held against what is left of the file before it is
// used.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>
#include <unordered_set>

#include "base/error.h"
#include "base/quote.h"
#include "formats/ggml_types.h"
#include "formats/gguf.h"

namespace qiao {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read by copying little-endian values");

enum class ValueType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

constexpr uint64_t kMaxNameBytes = 65535;  // of a key or a tensor's name
constexpr uint64_t kMaxAlignment = uint64_t{1} << 24;
constexpr uint32_t kMaxDimensions = 4;
// The least that an entry, a tensor's record and a string in an array can take: bounds of their counts.
constexpr uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 4 + 8;
constexpr uint64_t kMinStringBytes = 8;

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string_view source) : bytes_(bytes), source_(source) {}

  std::string_view source() const { return source_; }
  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }

  template <typename... Args>
  [[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) const {
    throw_error(kind, "{}: byte {}: {}", source_, offset_, fmt::format(format, std::forward<Args>(args)...));
  }

  // Fails where fewer than `count` things of `each` bytes are left.
  void need(uint64_t count, uint64_t each, std::string_view what) const {
    if (count <= remaining() / each) return;
    uint64_t total = 0;
    if (__builtin_mul_overflow(count, each, &total)) {
      fail(ErrorKind::kInvalidInput, "{} would take over 2^64 bytes; the file has {} more", what,
           remaining());
    }
    fail(ErrorKind::kInvalidInput,
         "{} takes at least {} bytes, the file has {} more: {} are missing (cut short?)", what, total,
         remaining(), total - remaining());
  }

  template <typename T>
  T read(std::string_view what) {
    need(1, sizeof(T), what);
    return read_unchecked<T>();
  }

  // After need().
  template <typename T>
  T read_unchecked() {
    T value;
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  std::string read_string(std::string_view what) {
    const auto length = read<uint64_t>(what);
    need(length, 1, what);
    std::string text(reinterpret_cast<const char*>(bytes_.data() + offset_), length);
    offset_ += length;
    return text;
  }

  std::string read_name(std::string_view what) {
    const auto length = read<uint64_t>(what);
    if (length == 0 || length > kMaxNameBytes) {
      offset_ -= sizeof(length);
      fail(ErrorKind::kInvalidInput, "{} is {} bytes long; 1 to {} are allowed", what, length, kMaxNameBytes);
    }
    offset_ -= sizeof(length);
    return read_string(what);
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view source_;
  uint64_t offset_ = 0;
};

bool read_bool(Reader& in, std::string_view what) {
  const auto value = in.read<uint8_t>(what);
  if (value > 1) in.fail(ErrorKind::kInvalidInput, "{}: a boolean is 0 or 1, not {}", what, value);
  return value == 1;
}

template <typename Stored, typename Widened>
std::vector<Widened> read_numbers(Reader& in, uint64_t count, std::string_view what) {
  in.need(count, sizeof(Stored), what);
  std::vector<Widened> values(count);
  for (Widened& value : values) value = in.read_unchecked<Stored>();
  return values;
}

GgufArray read_array(Reader& in, uint64_t& elements_left, std::string_view what) {
  const auto type = in.read<uint32_t>(what);
  const auto count = in.read<uint64_t>(what);
  if (static_cast<ValueType>(type) == ValueType::kArray) {
    in.fail(ErrorKind::kUnsupported, "{} is an array of arrays", what);
  }
  if (type > static_cast<uint32_t>(ValueType::kFloat64)) {
    in.fail(ErrorKind::kInvalidInput, "{}: {} is not a value type of GGUF (0 to 12)", what, type);
  }
  const auto limit_elements = [&] {
    if (count > elements_left) {
      in.fail(ErrorKind::kTooLarge, "{}: an array of {} elements is over the limit of {} in one file", what,
              count, kMaxGgufArrayElements);
    }
    elements_left -= count;
  };
  const auto numbers = [&]<typename Stored, typename Widened>(Stored, Widened) -> GgufArray {
    in.need(count, sizeof(Stored), what);
    limit_elements();
    return read_numbers<Stored, Widened>(in, count, what);
  };
  switch (static_cast<ValueType>(type)) {
    case ValueType::kUint8:
      return numbers(uint8_t{}, uint64_t{});
    case ValueType::kInt8:
      return numbers(int8_t{}, int64_t{});
    case ValueType::kUint16:
      return numbers(uint16_t{}, uint64_t{});
    case ValueType::kInt16:
      return numbers(int16_t{}, int64_t{});
    case ValueType::kUint32:
      return numbers(uint32_t{}, uint64_t{});
    case ValueType::kInt32:
      return numbers(int32_t{}, int64_t{});
    case ValueType::kFloat32:
      return numbers(float{}, double{});
    case ValueType::kUint64:
      return numbers(uint64_t{}, uint64_t{});
    case ValueType::kInt64:
      return numbers(int64_t{}, int64_t{});
    case ValueType::kFloat64:
      return numbers(double{}, double{});
    case ValueType::kBool: {
      in.need(count, 1, what);
      limit_elements();
      std::vector<bool> values(count);
      for (uint64_t i = 0; i < count; ++i) values[i] = read_bool(in, what);
      return values;
    }
    case ValueType::kString: {
      in.need(count, kMinStringBytes, what);
      limit_elements();
      std::vector<std::string> values(count);
      for (std::string& value : values) value = in.read_string(what);
      return values;
    }
    case ValueType::kArray:
      break;
  }
  assertion_failed("every value type is handled", __FILE__, __LINE__);
}

GgufValue read_value(Reader& in, uint32_t type, uint64_t& elements_left, std::string_view what) {
  switch (static_cast<ValueType>(type)) {
    case ValueType::kUint8:
      return uint64_t{in.read<uint8_t>(what)};
    case ValueType::kInt8:
      return int64_t{in.read<int8_t>(what)};
    case ValueType::kUint16:
      return uint64_t{in.read<uint16_t>(what)};
    case ValueType::kInt16:
      return int64_t{in.read<int16_t>(what)};
    case ValueType::kUint32:
      return uint64_t{in.read<uint32_t>(what)};
    case ValueType::kInt32:
      return int64_t{in.read<int32_t>(what)};
    case ValueType::kFloat32:
      return double{in.read<float>(what)};
    case ValueType::kBool:
      return read_bool(in, what);
    case ValueType::kString:
      return in.read_string(what);
    case ValueType::kArray:
      return read_array(in, elements_left, what);
    case ValueType::kUint64:
      return in.read<uint64_t>(what);
    case ValueType::kInt64:
      return in.read<int64_t>(what);
    case ValueType::kFloat64:
      return in.read<double>(what);
  }
  in.fail(ErrorKind::kInvalidInput, "{}: {} is not a value type of GGUF (0 to 12)", what, type);
}

uint32_t read_version(Reader& in, std::span<const std::byte> bytes) {
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                               std::min<size_t>(bytes.size(), 64));
  if (start.starts_with("version https://git-lfs")) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: a Git LFS pointer, not the model itself: run git lfs pull, or download "
                "the file",
                in.source());
  }
  for (const std::string_view old : {"ggml", "lmgg", "fmgg", "tjgg", "algg"}) {
    if (start.starts_with(old)) {
      throw_error(ErrorKind::kUnsupported, "{}: a GGML file from before GGUF; convert it anew", in.source());
    }
  }
  if (!start.starts_with(std::string_view("GGUF").substr(0, start.size())) || start.empty()) {
    throw_error(ErrorKind::kInvalidInput, "{}: not a GGUF file: it begins with {}, not \"GGUF\"", in.source(),
                quote_text(start.substr(0, 4)));
  }
  in.read<uint32_t>("the magic");
  const auto version = in.read<uint32_t>("the version");
  if (version == 2 || version == 3) return version;
  if (version == __builtin_bswap32(2) || version == __builtin_bswap32(3)) {
    throw_error(ErrorKind::kUnsupported, "{}: a big-endian GGUF file; Qiao reads little-endian ones",
                in.source());
  }
  throw_error(ErrorKind::kUnsupported, "{}: GGUF version {}; Qiao reads 2 and 3", in.source(), version);
}

void read_metadata(Reader& in, uint64_t count, GgufMetadata& metadata) {
  std::unordered_set<std::string> seen;
  uint64_t elements_left = kMaxGgufArrayElements;
  for (uint64_t i = 0; i < count; ++i) {
    std::string key = in.read_name("a metadata key");
    const std::string what = "the value of " + quote_text(key);
    if (!seen.insert(key).second)
      in.fail(ErrorKind::kInvalidInput, "the key {} stands twice", quote_text(key));
    const auto type = in.read<uint32_t>(what);
    metadata.entries.emplace_back(std::move(key), read_value(in, type, elements_left, what));
  }
}

uint64_t data_alignment(const GgufMetadata& metadata) {
  const std::optional<int64_t> stated = metadata.find_int("general.alignment");
  if (!stated) return 32;
  const auto alignment = static_cast<uint64_t>(*stated);
  if (*stated < 8 || alignment > kMaxAlignment || !std::has_single_bit(alignment)) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: general.alignment is {}; a power of two from 8 to {} was expected", metadata.source,
                *stated, kMaxAlignment);
  }
  return alignment;
}

// Shape, type and size; `offset` is still of the data section.
TensorInfo read_tensor(Reader& in, TypePolicy policy) {
  TensorInfo tensor;
  tensor.name = in.read_name("a tensor's name");
  const std::string what = "tensor " + quote_text(tensor.name);
  const auto rank = in.read<uint32_t>(what);
  if (rank > kMaxDimensions) {
    in.fail(ErrorKind::kInvalidInput, "{} has {} dimensions; at most {} are allowed", what, rank,
            kMaxDimensions);
  }
  int64_t product = 1;  // without the zeros: what is beside one must not overflow either
  for (uint32_t i = 0; i < rank; ++i) {
    const auto size = in.read<uint64_t>(what);
    if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
        __builtin_mul_overflow(product, std::max<int64_t>(static_cast<int64_t>(size), 1), &product)) {
      in.fail(ErrorKind::kInvalidInput, "{}: the product of its dimensions is over 2^63", what);
    }
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  const int64_t elements = tensor.elements();
  const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.front();
  std::reverse(tensor.shape.begin(), tensor.shape.end());

  const auto number = in.read<uint32_t>(what);
  const std::optional<GgmlType> type = ggml_type(number);
  if (!type) in.fail(ErrorKind::kInvalidInput, "{}: {} is not a known element type", what, number);
  if (type->block_bytes == 0) {
    in.fail(ErrorKind::kUnsupported,
            "{}: element type {} was taken out of the format; convert the model anew", what, type->name);
  }
  if (type->dtype) {
    tensor.dtype = *type->dtype;
  } else {
    tensor.unsupported = type->name;
    if (policy == TypePolicy::kRefuseUnsupported) {
      throw_error(ErrorKind::kUnsupported, "{}: {}: element type {} is not supported", in.source(), what,
                  type->name);
    }
  }
  if (row % type->block_elements != 0) {
    in.fail(ErrorKind::kInvalidInput, "{}: rows of {} elements; {} needs a multiple of {}", what, row,
            type->name, type->block_elements);
  }
  if (__builtin_mul_overflow(static_cast<uint64_t>(elements / type->block_elements),
                             static_cast<uint64_t>(type->block_bytes), &tensor.bytes)) {
    in.fail(ErrorKind::kInvalidInput, "{}: its size is over 2^64 bytes", what);
  }
  tensor.offset = in.read<uint64_t>(what);
  return tensor;
}

// Makes offsets the file's and holds them against its length and each other.
void place_tensors(std::vector<TensorInfo>& tensors, uint64_t data_begin, uint64_t alignment,
                   uint64_t file_bytes, std::string_view source) {
  uint64_t needed = 0;
  const TensorInfo* first_beyond = nullptr;
  for (TensorInfo& tensor : tensors) {
    if (tensor.offset % alignment != 0) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {}: offset {} is not a multiple of the alignment {}",
                  source, quote_text(tensor.name), tensor.offset, alignment);
    }
    uint64_t end = 0;
    if (__builtin_add_overflow(tensor.offset, data_begin, &tensor.offset) ||
        __builtin_add_overflow(tensor.offset, tensor.bytes, &end)) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} ends beyond 2^64 bytes", source,
                  quote_text(tensor.name));
    }
    if (end > file_bytes && first_beyond == nullptr) first_beyond = &tensor;
    needed = std::max(needed, end);
  }
  if (first_beyond != nullptr) {
    throw_error(
        ErrorKind::kInvalidInput,
        "{}: the file has {} bytes, its tensors need {}: {} are missing (cut short?), tensor {} is the first "
        "concerned",
        source, file_bytes, needed, needed - file_bytes, quote_text(first_beyond->name));
  }
  std::vector<const TensorInfo*> by_offset;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.bytes > 0) by_offset.push_back(&tensor);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorInfo& before = *by_offset[i - 1];
    if (before.offset + before.bytes > by_offset[i]->offset) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensors {} and {} overlap at byte {}", source,
                  quote_text(before.name), quote_text(by_offset[i]->name), by_offset[i]->offset);
    }
  }
}

}  // namespace

GgufHeader parse_gguf(std::span<const std::byte> bytes, std::string_view source, TypePolicy policy) {
  Reader in(bytes, source);
  GgufHeader header;
  header.metadata.source = source;
  header.version = read_version(in, bytes);
  const auto tensor_count = in.read<uint64_t>("the count of tensors");
  const auto entry_count = in.read<uint64_t>("the count of metadata entries");
  if (tensor_count > 0)
    in.need(tensor_count, kMinTensorBytes, fmt::format("a table of {} tensors", tensor_count));
  if (entry_count > 0)
    in.need(entry_count, kMinEntryBytes, fmt::format("metadata of {} entries", entry_count));
  if (entry_count > kMaxGgufEntries) {
    in.fail(ErrorKind::kTooLarge, "{} metadata entries are over the limit of {}", entry_count,
            kMaxGgufEntries);
  }
  if (tensor_count > kMaxTensors) {
    in.fail(ErrorKind::kTooLarge, "{} tensors are over the limit of {}", tensor_count, kMaxTensors);
  }
  read_metadata(in, entry_count, header.metadata);
  const uint64_t alignment = data_alignment(header.metadata);

  if (tensor_count > 0)
    in.need(tensor_count, kMinTensorBytes, fmt::format("a table of {} tensors", tensor_count));
  header.tensors.reserve(tensor_count);
  std::unordered_set<std::string_view> seen;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    header.tensors.push_back(read_tensor(in, policy));
    if (!seen.insert(header.tensors.back().name).second) {
      in.fail(ErrorKind::kInvalidInput, "the tensor {} stands twice", quote_text(header.tensors.back().name));
    }
  }
  header.header_bytes = in.offset();
  const uint64_t data_begin = (in.offset() + alignment - 1) / alignment * alignment;
  place_tensors(header.tensors, data_begin, alignment, bytes.size(), source);
  return header;
}

}  // namespace qiao
