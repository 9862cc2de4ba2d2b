// Block formats against what ggml's reference quantizers make of the same floats
// (golden/quantize_with_ggml.py).
#include "tensor/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "base/file.h"
#include "tensor/dequantize.h"

namespace qiao {
namespace {

double squared_error(DType dtype, const std::byte* block, const float* x) {
  const int64_t count = traits(dtype).block_elements;
  std::vector<float> values(static_cast<size_t>(count));
  dequantize(dtype, block, count, values.data());
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double apart = static_cast<double>(values[static_cast<size_t>(i)]) - static_cast<double>(x[i]);
    sum += apart * apart;
  }
  return sum;
}

// The K formats search among scales by sums of floats, whose last bits differ with a compiler's fused
// products: a block may come out another way where two of them are as good.
TEST(QuantizeTest, BlocksAreThoseOfGgml) {
  const std::string file = read_file(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "quantized.bin");
  std::set<std::string> seen;
  for (size_t offset = 0; offset < file.size();) {
    struct Header {
      char name[16];
      uint32_t block_bytes, blocks, elements;
    } header;
    std::memcpy(&header, file.data() + offset, sizeof header);
    offset += sizeof header;
    const std::string name = header.name;
    const DType dtype = dtype_named(name).value();
    std::vector<float> values(header.elements);
    std::memcpy(values.data(), file.data() + offset, values.size() * sizeof(float));
    offset += values.size() * sizeof(float);
    const auto* expected = reinterpret_cast<const std::byte*>(file.data() + offset);
    offset += size_t{header.block_bytes} * header.blocks;
    std::vector<std::byte> made(size_t{header.block_bytes} * header.blocks);
    quantize(values, dtype, made.data());
    uint32_t same = 0;
    const size_t block = header.elements / header.blocks;
    for (size_t i = 0; i < header.blocks; ++i) {
      const std::byte *ours = made.data() + i * header.block_bytes,
                      *theirs = expected + i * header.block_bytes;
      if (std::memcmp(ours, theirs, header.block_bytes) == 0) {
        ++same;
        continue;
      }
      const float* x = values.data() + i * block;
      EXPECT_LE(squared_error(dtype, ours, x), 1.02 * squared_error(dtype, theirs, x))
          << name << " block " << i;
    }
    if (name.ends_with("K")) {
      EXPECT_GE(same, header.blocks * 3 / 4) << name;
    } else {
      EXPECT_EQ(same, header.blocks) << name;
    }
    seen.insert(name);
  }
  EXPECT_EQ(seen.size(), 7u);
}

}  // namespace
}  // namespace qiao
