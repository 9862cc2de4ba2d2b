// Golden blocks of every format, unpacked by gguf-py (golden/make_quants.py).
#include "tensor/dequantize.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "base/file.h"

namespace qiao {
namespace {

TEST(DequantizeTest, AgreesWithGgufPyToTheBit) {
  const std::string file = read_file(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "quants.bin");
  std::set<std::string> seen;
  for (size_t offset = 0; offset < file.size();) {
    struct Header {
      char name[16];
      uint32_t block_bytes, blocks, elements;
    } header;
    ASSERT_LE(offset + sizeof header, file.size());
    std::memcpy(&header, file.data() + offset, sizeof header);
    offset += sizeof header;
    const std::string name = header.name;
    const std::optional<DType> dtype = dtype_named(name);
    ASSERT_TRUE(dtype.has_value()) << name;
    ASSERT_EQ(traits(*dtype).block_bytes, static_cast<int>(header.block_bytes)) << name;
    ASSERT_EQ(traits(*dtype).block_elements * header.blocks, header.elements) << name;
    std::vector<float> expected(header.elements), actual(header.elements);
    const auto* bytes = reinterpret_cast<const std::byte*>(file.data() + offset);
    offset += size_t{header.block_bytes} * header.blocks;
    std::memcpy(expected.data(), file.data() + offset, expected.size() * sizeof(float));
    offset += expected.size() * sizeof(float);
    dequantize(*dtype, bytes, header.elements, actual.data());
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_EQ(actual[i], expected[i]) << name << " element " << i;
    seen.insert(name);
  }
  EXPECT_EQ(seen.size(), 15u);
}

TEST(DequantizeTest, BytesOfAnyAlignment) {
  alignas(8) char memory[8] = {0};
  const float value = 1.5f;
  std::memcpy(memory + 1, &value, sizeof value);
  float out = 0;
  dequantize(DType::kF32, reinterpret_cast<const std::byte*>(memory + 1), 1, &out);
  EXPECT_EQ(out, 1.5f);
}

}  // namespace
}  // namespace qiao
