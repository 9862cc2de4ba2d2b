#include "formats/gguf_write.h"

#include <bit>
#include <cstring>

#include "base/atomic_file.h"
#include "base/error.h"
#include "formats/ggml_types.h"

namespace qiao {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kAlignment = 32;  // what readers take where general.alignment says nothing
// Numbers of value types.
constexpr uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9;

class HeaderText {
 public:
  template <typename Number>
  void number(Number value) {
    char bytes[sizeof(value)];
    std::memcpy(bytes, &value, sizeof(value));
    text_.append(bytes, sizeof(bytes));
  }
  void string(std::string_view value) {
    number<uint64_t>(value.size());
    text_.append(value);
  }

  void value(uint32_t v) { number(kUint32), number(v); }
  void value(int32_t v) { number(kInt32), number(v); }
  void value(float v) { number(kFloat32), number(v); }
  void value(bool v) { number(kBool), number(static_cast<uint8_t>(v)); }
  void value(const std::string& v) { number(kString), string(v); }
  void value(const std::vector<std::string>& list) {
    array(kString, list.size());
    for (const std::string& each : list) string(each);
  }
  void value(const std::vector<int32_t>& list) {
    array(kInt32, list.size());
    for (const int32_t each : list) number(each);
  }
  void value(const std::vector<float>& list) {
    array(kFloat32, list.size());
    for (const float each : list) number(each);
  }

  void align() { text_.resize((text_.size() + kAlignment - 1) / kAlignment * kAlignment); }
  const std::string& text() const { return text_; }

 private:
  void array(uint32_t type, size_t count) {
    number(kArray), number(type);
    number<uint64_t>(count);
  }
  std::string text_;
};

uint32_t number_of(DType dtype) {
  for (uint32_t number = 0;; ++number) {
    const auto type = ggml_type(number);
    QIAO_ASSERT(type.has_value());  // every dtype of a weight has one
    if (type->dtype == dtype) return number;
  }
}

uint64_t bytes_of_tensor(const TensorToWrite& tensor) {
  int64_t elements = 1;
  for (const int64_t size : tensor.shape) elements *= size;
  return static_cast<uint64_t>(row_bytes(tensor.dtype, elements));
}

}  // namespace

void write_gguf(const std::filesystem::path& path, const GgufWriteEntries& metadata,
                std::span<const TensorToWrite> tensors) {
  HeaderText header;
  for (const char c : {'G', 'G', 'U', 'F'}) header.number(c);
  header.number<uint32_t>(3);
  header.number<uint64_t>(tensors.size());
  header.number<uint64_t>(metadata.size());
  for (const auto& [key, value] : metadata) {
    header.string(key);
    std::visit([&](const auto& each) { header.value(each); }, value);
  }
  const auto padded = [](uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    header.string(tensor.name);
    header.number<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) header.number(static_cast<uint64_t>(tensor.shape[i]));
    header.number(number_of(tensor.dtype));
    header.number(offset);
    offset += padded(bytes_of_tensor(tensor));
  }
  header.align();
  AtomicFile file(path);
  file.write(header.text());
  for (const TensorToWrite& tensor : tensors) {
    const std::span<const std::byte> bytes = tensor.bytes();
    QIAO_ASSERT(bytes.size() == bytes_of_tensor(tensor));
    file.write({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    file.write(std::string(padded(bytes.size()) - bytes.size(), '\0'));
  }
  file.commit();
}

}  // namespace qiao
