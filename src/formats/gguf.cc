#include "formats/gguf.h"

#include <limits>
#include <unordered_set>

#include "base/error.h"
#include "base/quote.h"

namespace qiao {
namespace {

[[noreturn]] void throw_type(const GgufMetadata& metadata, std::string_view key, std::string_view expected) {
  throw_error(ErrorKind::kInvalidInput, "{}: metadata {}: {} was expected", metadata.source, quote_text(key),
              expected);
}

int64_t narrowed(const GgufMetadata& metadata, std::string_view key, uint64_t value) {
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    throw_error(ErrorKind::kInvalidInput, "{}: metadata {}: {} is over 2^63 - 1", metadata.source,
                quote_text(key), value);
  }
  return static_cast<int64_t>(value);
}

template <typename To, typename From>
std::vector<To> converted(const std::vector<From>& values) {
  return std::vector<To>(values.begin(), values.end());
}

// "stem-00002-of-00003.gguf" in three pieces.
struct SplitName {
  std::string stem;
  uint64_t number = 0;  // from 1
  uint64_t count = 0;

  std::string part(uint64_t n) const { return fmt::format("{}-{:05}-of-{:05}.gguf", stem, n, count); }
};

std::optional<uint64_t> five_digits(std::string_view text) {
  uint64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + static_cast<uint64_t>(c - '0');
  }
  return value;
}

std::optional<SplitName> split_name(const std::string& file_name) {
  constexpr std::string_view kPattern = "-00000-of-00000.gguf";
  if (file_name.size() < kPattern.size()) return std::nullopt;
  const size_t at = file_name.size() - kPattern.size();
  const std::string_view tail = std::string_view(file_name).substr(at);
  const auto number = five_digits(tail.substr(1, 5));
  const auto count = five_digits(tail.substr(10, 5));
  if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || tail.substr(15) != ".gguf" || !number || !count) {
    return std::nullopt;
  }
  return SplitName{file_name.substr(0, at), *number, *count};
}

struct SplitInfo {
  int64_t number = 0;  // from 0
  int64_t count = 1;
};

SplitInfo split_info(const GgufMetadata& metadata) {
  SplitInfo info;
  info.count = metadata.find_int("split.count").value_or(1);
  if (info.count <= 1) return SplitInfo{};  // tools write 0 or 1 for "not split"
  const std::optional<int64_t> number = metadata.find_int("split.no");
  if (!number || *number < 0 || *number >= info.count) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: metadata \"split.no\": 0 to {} was expected (split.count is {})", metadata.source,
                info.count - 1, info.count);
  }
  info.number = *number;
  return info;
}

}  // namespace

int64_t TensorInfo::elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  for (const auto& [name, value] : entries) {
    if (name == key) return &value;
  }
  return nullptr;
}

std::optional<int64_t> GgufMetadata::find_int(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* n = std::get_if<int64_t>(value)) return *n;
  if (const auto* n = std::get_if<uint64_t>(value)) return narrowed(*this, key, *n);
  throw_type(*this, key, "an integer");
}

std::optional<double> GgufMetadata::find_double(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* n = std::get_if<double>(value)) return *n;
  if (const auto* n = std::get_if<int64_t>(value)) return static_cast<double>(*n);
  if (const auto* n = std::get_if<uint64_t>(value)) return static_cast<double>(*n);
  throw_type(*this, key, "a number");
}

std::optional<bool> GgufMetadata::find_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* b = std::get_if<bool>(value)) return *b;
  throw_type(*this, key, "a boolean");
}

const std::string* GgufMetadata::find_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  if (const auto* text = std::get_if<std::string>(value)) return text;
  throw_type(*this, key, "a string");
}

const std::vector<std::string>* GgufMetadata::find_strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  if (const auto* array = std::get_if<GgufArray>(value)) {
    if (const auto* strings = std::get_if<std::vector<std::string>>(array)) return strings;
  }
  throw_type(*this, key, "an array of strings");
}

std::optional<std::vector<double>> GgufMetadata::find_doubles(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* array = std::get_if<GgufArray>(value)) {
    if (const auto* v = std::get_if<std::vector<double>>(array)) return *v;
    if (const auto* v = std::get_if<std::vector<int64_t>>(array)) return converted<double>(*v);
    if (const auto* v = std::get_if<std::vector<uint64_t>>(array)) return converted<double>(*v);
    if (const auto* v = std::get_if<std::vector<bool>>(array)) return converted<double>(*v);
  }
  throw_type(*this, key, "an array of numbers");
}

std::optional<std::vector<int64_t>> GgufMetadata::find_ints(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* array = std::get_if<GgufArray>(value)) {
    if (const auto* v = std::get_if<std::vector<int64_t>>(array)) return *v;
    if (const auto* v = std::get_if<std::vector<bool>>(array)) return converted<int64_t>(*v);
    if (const auto* v = std::get_if<std::vector<uint64_t>>(array)) {
      for (const uint64_t n : *v) narrowed(*this, key, n);
      return converted<int64_t>(*v);
    }
  }
  throw_type(*this, key, "an array of integers");
}

std::shared_ptr<GgufFile> GgufFile::open(const std::filesystem::path& path, TypePolicy policy) {
  auto file = std::make_shared<GgufFile>();
  const auto read_part = [&](const std::filesystem::path& part) {
    MappedFile mapped = MappedFile::open(part);
    GgufHeader header = parse_gguf(mapped.bytes(), part.string(), policy);
    mapped.release(0, header.header_bytes);
    file->files_.push_back(std::move(mapped));
    return header;
  };
  GgufHeader named = read_part(path);
  const SplitInfo split = split_info(named.metadata);
  if (split.count == 1) {
    file->version_ = named.version;
    file->metadata_ = std::move(named.metadata);
    file->tensors_ = std::move(named.tensors);
    return file;
  }

  const std::optional<SplitName> name = split_name(path.filename().string());
  if (!name || name->number != static_cast<uint64_t>(split.number) + 1 ||
      name->count != static_cast<uint64_t>(split.count)) {
    throw_error(
        ErrorKind::kInvalidInput,
        "{}: part {} of a set of {}: its name must end in -{:05}-of-{:05}.gguf for the others to be found",
        path.string(), split.number + 1, split.count, split.number + 1, split.count);
  }
  file->files_.clear();
  std::unordered_set<std::string> seen;
  for (int64_t number = 0; number < split.count; ++number) {
    const std::filesystem::path part = path.parent_path() / name->part(static_cast<uint64_t>(number) + 1);
    if (std::error_code error; !std::filesystem::exists(part, error)) {
      throw_error(ErrorKind::kNotFound, "{}: not there: part {} of {} of the set that {} belongs to",
                  part.string(), number + 1, split.count, path.string());
    }
    GgufHeader header = read_part(part);
    const SplitInfo info = split_info(header.metadata);
    if (info.number != number || info.count != split.count) {
      throw_error(ErrorKind::kInvalidInput, "{}: says it is part {} of {}; part {} of {} was expected",
                  part.string(), info.number + 1, info.count, number + 1, split.count);
    }
    for (TensorInfo& tensor : header.tensors) {
      tensor.file = static_cast<size_t>(number);
      if (!seen.insert(tensor.name).second) {
        throw_error(ErrorKind::kInvalidInput, "{}: tensor {} stands in an earlier part too", part.string(),
                    quote_text(tensor.name));
      }
      file->tensors_.push_back(std::move(tensor));
    }
    if (number == 0) {
      file->version_ = header.version;
      file->metadata_ = std::move(header.metadata);
    }
  }
  const std::optional<int64_t> expected = file->metadata_.find_int("split.tensors.count");
  if (expected && *expected != static_cast<int64_t>(file->tensors_.size())) {
    throw_error(ErrorKind::kInvalidInput, "{}: split.tensors.count is {}, but the {} parts hold {} tensors",
                file->metadata_.source, *expected, split.count, file->tensors_.size());
  }
  return file;
}

}  // namespace qiao
