// Makes the bytes of GGUF files, well-formed or not: every count, length and number can be a lie.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qiao::testing {

// Numbers of the format's value and element types, as its specification gives them.
enum GgufValueType : uint32_t {
  kGgufU8 = 0,
  kGgufI8 = 1,
  kGgufU16 = 2,
  kGgufI16 = 3,
  kGgufU32 = 4,
  kGgufI32 = 5,
  kGgufF32 = 6,
  kGgufBool = 7,
  kGgufString = 8,
  kGgufArray = 9,
  kGgufU64 = 10,
  kGgufI64 = 11,
  kGgufF64 = 12,
};
inline constexpr uint32_t kGgmlF32 = 0;

class GgufBuilder {
 public:
  // What the header says; by default, what was added.
  uint32_t magic = 0x46554747;
  uint32_t version = 3;
  std::optional<uint64_t> tensor_count;
  std::optional<uint64_t> entry_count;

  template <typename T>
  static void put(std::string& out, T value) {
    char raw[sizeof value];
    std::memcpy(raw, &value, sizeof value);
    out.append(raw, sizeof value);
  }
  static void put_string(std::string& out, std::string_view text) {
    put<uint64_t>(out, text.size());
    out += text;
  }

  // Any bytes as one metadata entry.
  GgufBuilder& raw_entry(std::string_view bytes) {
    metadata_ += bytes;
    ++entries_;
    return *this;
  }
  template <typename T>
  GgufBuilder& number(std::string_view key, uint32_t type, T value) {
    std::string entry;
    put_string(entry, key);
    put(entry, type);
    put(entry, value);
    return raw_entry(entry);
  }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    std::string entry;
    put_string(entry, key);
    put<uint32_t>(entry, kGgufString);
    put_string(entry, value);
    return raw_entry(entry);
  }
  // An array whose stated count may differ from the elements that follow.
  GgufBuilder& array(std::string_view key, uint32_t element_type, uint64_t count, std::string_view elements) {
    std::string entry;
    put_string(entry, key);
    put<uint32_t>(entry, kGgufArray);
    put(entry, element_type);
    put(entry, count);
    return raw_entry(entry + std::string(elements));
  }
  // Dimensions innermost first, as the file has them.
  GgufBuilder& tensor(std::string_view name, std::vector<uint64_t> dimensions, uint32_t type = kGgmlF32,
                      uint64_t offset = 0) {
    put_string(table_, name);
    put(table_, static_cast<uint32_t>(dimensions.size()));
    for (const uint64_t size : dimensions) put(table_, size);
    put(table_, type);
    put(table_, offset);
    ++tensors_;
    return *this;
  }
  GgufBuilder& data(size_t bytes, size_t alignment = 32) {
    data_bytes_ = bytes;
    alignment_ = alignment;
    return *this;
  }

  std::string build() const {
    std::string out;
    put(out, magic);
    put(out, version);
    put<uint64_t>(out, tensor_count.value_or(tensors_));
    put<uint64_t>(out, entry_count.value_or(entries_));
    out += metadata_ + table_;
    if (data_bytes_ > 0) {
      out.resize((out.size() + alignment_ - 1) / alignment_ * alignment_);
      for (size_t i = 0; i < data_bytes_; ++i) out += static_cast<char>(i * 7);
    }
    return out;
  }

 private:
  std::string metadata_, table_;
  uint64_t entries_ = 0;
  uint64_t tensors_ = 0;
  size_t data_bytes_ = 0;
  size_t alignment_ = 32;
};

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace qiao::testing
