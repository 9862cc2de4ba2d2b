#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/json.h"
#include "base/quote.h"

namespace qiao {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxRank = 32;
constexpr size_t kMaxMetadataEntries = size_t{1} << 16;

struct ElementType {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;  // nothing: known, but Qiao cannot compute with it
};

constexpr std::array<ElementType, 20> kElementTypes = {{
    {"F64", 64, DType::kF64},
    {"F32", 32, DType::kF32},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"I64", 64, DType::kI64},
    {"I32", 32, DType::kI32},
    {"I16", 16, DType::kI16},
    {"I8", 8, DType::kI8},
    {"U8", 8, DType::kU8},
    {"BOOL", 8, DType::kU8},
    {"U64", 64, {}},
    {"U32", 32, {}},
    {"U16", 16, {}},
    {"C64", 64, {}},
    {"F8_E4M3", 8, DType::kF8_E4M3},
    {"F8_E5M2", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"F4", 4, {}},
}};

// Builds the tensor table while the JSON is read: no tree of a hostile header ever exists, and a name that
// stands twice is seen.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(SafetensorsHeader& header, std::string_view source, TypePolicy policy)
      : header_(header), source_(source), policy_(policy) {}

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    unexpected("a number that is no integer below 2^64");
  }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        fail("a dimension over 2^63 - 1");
      if (tensor_.shape.size() == kMaxRank) fail("more than 32 dimensions");
      tensor_.shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::kOffsets) {
      if (offsets_read_ == 2) fail("data_offsets has more than two numbers");
      offsets_[offsets_read_++] = value;
    } else {
      unexpected("a number");
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      if (header_.metadata.size() == kMaxMetadataEntries) fail("more than 65536 entries");
      header_.metadata.emplace_back(field_, std::move(value));
    } else if (place_ == Place::kTensor && field_ == "dtype") {
      dtype_ = std::move(value);
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::kOutside) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop && name_ == "__metadata__") {
      place_ = Place::kMetadata;
    } else if (place_ == Place::kTop) {
      place_ = Place::kTensor;
      tensor_ = TensorInfo{};
      dtype_.clear();
      offsets_read_ = 0;
      fields_ = 0;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(string_t& value) override {
    if (place_ == Place::kTop) {
      name_ = std::move(value);
      field_.clear();
      if (name_.empty()) fail("an empty name");
      if (!names_.insert(name_).second) fail("the name stands twice");
      return true;
    }
    field_ = std::move(value);
    if (place_ == Place::kTensor) {
      const auto at = std::find(kFields.begin(), kFields.end(), field_);
      if (at == kFields.end()) fail("not a field of a tensor");
      const int bit = 1 << (at - kFields.begin());
      if ((fields_ & bit) != 0) fail("the field stands twice");
      fields_ |= bit;
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) finish_tensor();
    place_ = place_ == Place::kTop ? Place::kOutside : Place::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::kTensor && field_ == "shape") {
      place_ = Place::kShape;
    } else if (place_ == Place::kTensor && field_ == "data_offsets") {
      place_ = Place::kOffsets;
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && offsets_read_ != 2) fail("two numbers were expected");
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw_error(ErrorKind::kInvalidInput, "{}: byte {}: the header is not valid JSON", source_, 8 + position);
  }

 private:
  static constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};
  enum class Place { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };

  [[noreturn]] void fail(std::string_view problem) const {
    throw_error(ErrorKind::kInvalidInput, "{}: header{}{}: {}", source_,
                name_.empty() ? std::string() : ", " + quote_text(name_),
                field_.empty() ? std::string() : ", field " + quote_text(field_), problem);
  }
  [[noreturn]] void unexpected(std::string_view what) const {
    fail(fmt::format("{} was not expected here", what));
  }

  void finish_tensor() {
    field_.clear();
    if (fields_ != (1 << kFields.size()) - 1) fail("dtype, shape and data_offsets were expected");
    int64_t product = 1;  // without the zeros: what is beside one must not overflow either
    for (const int64_t size : tensor_.shape) {
      if (__builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product))
        fail("the product of its dimensions is over 2^63");
    }
    const int64_t elements = tensor_.elements();
    const auto type = std::find_if(kElementTypes.begin(), kElementTypes.end(),
                                   [&](const ElementType& row) { return row.name == dtype_; });
    if (type == kElementTypes.end()) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor {}: element type {} is not known", source_,
                  quote_text(name_), quote_text(dtype_));
    }
    if (type->dtype) {
      tensor_.dtype = *type->dtype;
    } else {
      tensor_.unsupported = type->name;
      if (policy_ == TypePolicy::kRefuseUnsupported) {
        throw_error(ErrorKind::kUnsupported, "{}: tensor {}: element type {} is not supported", source_,
                    quote_text(name_), type->name);
      }
    }
    uint64_t bits = 0;
    if (__builtin_mul_overflow(static_cast<uint64_t>(elements), static_cast<uint64_t>(type->bits), &bits)) {
      fail("its size is over 2^64 bits");
    }
    if (bits % 8 != 0) fail("its size is not a whole number of bytes");
    tensor_.bytes = bits / 8;
    if (offsets_[0] > offsets_[1] || offsets_[1] - offsets_[0] != tensor_.bytes) {
      fail(fmt::format("data_offsets [{}, {}] do not span the {} bytes of its shape and dtype", offsets_[0],
                       offsets_[1], tensor_.bytes));
    }
    if (header_.tensors.size() == kMaxTensors) {
      throw_error(ErrorKind::kTooLarge, "{}: more than {} tensors", source_, kMaxTensors);
    }
    tensor_.offset = offsets_[0];
    tensor_.name = name_;
    header_.tensors.push_back(std::move(tensor_));
  }

  SafetensorsHeader& header_;
  std::string_view source_;
  TypePolicy policy_;
  Place place_ = Place::kOutside;
  std::unordered_set<std::string> names_;
  std::string name_;
  std::string field_;
  std::string dtype_;
  TensorInfo tensor_;
  std::array<uint64_t, 2> offsets_{};
  size_t offsets_read_ = 0;
  int fields_ = 0;  // which of kFields were seen: a bit each
};

void place_tensors(SafetensorsHeader& header, uint64_t file_bytes, std::string_view source) {
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const TensorInfo& a, const TensorInfo& b) {
                     return std::pair(a.offset, a.bytes) <
                            std::pair(b.offset, b.bytes);  // an empty one before its neighbour
                   });
  const uint64_t data_bytes = file_bytes - header.header_bytes;
  uint64_t end = 0;
  for (TensorInfo& tensor : header.tensors) {
    if (tensor.offset != end) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} begins at byte {} of the data, {} byte {}: {}",
                  source, quote_text(tensor.name), tensor.offset,
                  tensor.offset < end ? "overlapping what ends at" : "after", end,
                  tensor.offset < end ? "tensors must not overlap" : "there must be no hole");
    }
    end += tensor.bytes;  // no overflow: offset + bytes was a 64-bit number in the file
    tensor.offset += header.header_bytes;
  }
  if (end > data_bytes) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: the file has {} bytes, its tensors need {}: {} are missing (cut short?)", source,
                file_bytes, header.header_bytes + end, end - data_bytes);
  }
  if (end < data_bytes) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} bytes after the last tensor belong to none", source,
                data_bytes - end);
  }
}

void check_shard_name(const std::string& name, const std::filesystem::path& index) {
  const bool plain =
      name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos && name.ends_with(".safetensors");
  if (!plain) {
    throw_error(ErrorKind::kInvalidInput, "{}: weight_map: {} is not the plain name of a .safetensors file",
                index.string(), quote_text(name));
  }
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, uint64_t file_bytes,
                                    std::string_view source, TypePolicy policy) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("version https://git-lfs")) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: a Git LFS pointer, not the model itself: run git lfs pull, or download the file",
                source);
  }
  uint64_t length = 0;
  if (bytes.size() < sizeof length) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} bytes; a safetensors file has at least 10 ({} are missing)",
                source, file_bytes, 10 - file_bytes);
  }
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > kMaxHeaderBytes || length < 2) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: not a safetensors file: a header of {} bytes; 2 to {} were expected", source, length,
                kMaxHeaderBytes);
  }
  if (length > bytes.size() - sizeof length) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: byte 8: a header of {} bytes, the file has {} more: {} are missing", source, length,
                bytes.size() - sizeof length, length - (bytes.size() - sizeof length));
  }
  const std::string_view json = text.substr(sizeof length, length);
  if (json.front() != '{') {
    throw_error(ErrorKind::kInvalidInput,
                "{}: byte 8: not a safetensors file: the header must begin with '{{'", source);
  }
  SafetensorsHeader header;
  header.header_bytes = sizeof length + length;
  HeaderReader reader(header, source, policy);
  Json::sax_parse(json.begin(), json.end(), &reader);
  place_tensors(header, file_bytes, source);
  return header;
}

SafetensorsFiles open_safetensors(const std::filesystem::path& file, TypePolicy policy) {
  SafetensorsFiles opened;
  opened.files.push_back(MappedFile::open(file));
  const MappedFile& mapped = opened.files.back();
  SafetensorsHeader header = parse_safetensors(mapped.bytes(), mapped.size(), file.string(), policy);
  mapped.release(0, header.header_bytes);
  opened.metadata = std::move(header.metadata);
  opened.tensors = std::move(header.tensors);
  return opened;
}

SafetensorsFiles open_safetensors_index(const std::filesystem::path& index, TypePolicy policy) {
  constexpr size_t kMaxIndexBytes = size_t{64} << 20;
  const Json json = parse_json(read_regular_file(index, kMaxIndexBytes), index.string(),
                               {.max_bytes = kMaxIndexBytes, .max_depth = 8});
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (map == json.end() || !map->is_object() || map->empty()) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: weight_map: an object of tensor names and file names was expected", index.string());
  }
  std::map<std::string, std::unordered_set<std::string_view>> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      throw_error(ErrorKind::kInvalidInput, "{}: weight_map: {}: a file name was expected", index.string(),
                  quote_text(tensor));
    }
    const auto& name = shard.get_ref<const std::string&>();
    check_shard_name(name, index);
    shards[name].insert(tensor);
  }
  SafetensorsFiles opened;
  for (auto& [name, wanted] : shards) {
    const std::filesystem::path path = index.parent_path() / name;
    if (std::error_code error; !std::filesystem::exists(path, error)) {
      throw_error(ErrorKind::kNotFound, "{}: not there: one of the {} shards that {} names", path.string(),
                  shards.size(), index.string());
    }
    SafetensorsFiles shard = open_safetensors(path, policy);
    for (TensorInfo& tensor : shard.tensors) {
      if (wanted.erase(tensor.name) == 0) continue;  // the index says where a tensor is read from
      tensor.file = opened.files.size();
      opened.tensors.push_back(std::move(tensor));
    }
    if (!wanted.empty()) {
      throw_error(ErrorKind::kInvalidInput, "{}: has no tensor {}, which {} says is there", path.string(),
                  quote_text(*wanted.begin()), index.string());
    }
    if (opened.files.empty()) opened.metadata = std::move(shard.metadata);
    opened.files.push_back(std::move(shard.files.front()));
  }
  return opened;
}

}  // namespace qiao
