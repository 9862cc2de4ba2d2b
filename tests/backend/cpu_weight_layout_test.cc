#include "backend/cpu/weight_layout.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "cpu_weights.h"

namespace qiao::cpu {
namespace {

TEST(CpuWeightLayout, GivesBackTheFilesBytesOfEveryFormatAndShape) {
  std::mt19937 random(1);
  ThreadPool pool(2);
  for (const int64_t columns : {256, 512, 768, 1536, 2304}) {
    for (const DType dtype : kBlockFormats) {
      const std::vector<std::byte> rows = random_rows(dtype, 37, columns, random);
      const CpuWeight weight = make_cpu_weight({1, columns, {{dtype, 37, rows.data()}}}, pool);
      std::vector<std::byte> back(rows.size());
      weight.read(0, 0, back.data(), pool);
      EXPECT_EQ(rows, back) << traits(dtype).name << " x " << columns;
    }
  }
  for (const int64_t columns : {1, 2, 5, 64, 577, 641, 1999}) {
    for (const DType dtype : kPlainFormats) {
      const std::vector<std::byte> rows = random_rows(dtype, 17, columns, random);
      const CpuWeight weight = make_cpu_weight({1, columns, {{dtype, 17, rows.data()}}}, pool);
      std::vector<std::byte> back(rows.size());
      weight.read(0, 0, back.data(), pool);
      EXPECT_EQ(rows, back) << traits(dtype).name << " x " << columns;
    }
  }
}

TEST(CpuWeightLayout, KeepsExpertsAndSegmentsApart) {
  std::mt19937 random(2);
  ThreadPool pool(1);
  const DType dtypes[] = {DType::kQ4_K, DType::kQ6_K, DType::kF16};
  const int64_t rows[] = {5, 16, 33};
  WeightSource source{3, 512, {}};
  std::vector<std::vector<std::byte>> parts;
  for (int i = 0; i < 9; ++i) parts.push_back(random_rows(dtypes[i % 3], rows[i % 3], 512, random));
  for (size_t i = 0; i < 9; ++i) source.parts.push_back({dtypes[i % 3], rows[i % 3], parts[i].data()});
  const CpuWeight weight = make_cpu_weight(source, pool);
  for (size_t i = 0; i < 9; ++i) {
    std::vector<std::byte> back(parts[i].size());
    weight.read(static_cast<int64_t>(i / 3), i % 3, back.data(), pool);
    EXPECT_EQ(parts[i], back) << i;
  }
}

TEST(CpuWeightLayout, TakesTheFilesMemoryAndNoMore) {
  for (const DType dtype : kBlockFormats) {
    const int64_t file = row_bytes(dtype, 1536) * 576;
    const WeightSource source{1, 1536, {{dtype, 576, nullptr}}};
    EXPECT_EQ(CpuWeight::bytes_for(source), file) << traits(dtype).name;
  }
}

// The expected values are gguf-py's (golden/make_quants.py).
TEST(CpuWeightLayout, DequantizesEveryFormatAsGgufPyDoes) {
  const std::string file = read_file(QIAO_TEST_DATA "/golden/quants.bin");
  ThreadPool pool(1);
  std::mt19937 random(3);
  int records = 0;
  for (size_t at = 0; at < file.size(); ++records) {
    struct Header {
      char name[16];
      uint32_t block_bytes, blocks, elements;
    } header;
    ASSERT_LE(at + sizeof header, file.size());
    std::memcpy(&header, file.data() + at, sizeof header);
    at += sizeof header;
    const DType dtype = dtype_named(header.name).value();
    const int64_t columns = header.elements;
    const auto bytes = static_cast<size_t>(row_bytes(dtype, columns));
    // The row in question stands at an odd place among others.
    std::vector<std::byte> rows = random_rows(dtype, 21, columns, random);
    std::memcpy(rows.data() + 18 * bytes, file.data() + at, bytes);
    at += bytes;
    std::vector<float> expected(header.elements);
    std::memcpy(expected.data(), file.data() + at, expected.size() * sizeof(float));
    at += expected.size() * sizeof(float);
    const CpuWeight weight = make_cpu_weight({1, columns, {{dtype, 21, rows.data()}}}, pool);
    for (const Isa isa : usable_isas()) {
      const std::vector<float> all = dequantized(weight, isa, pool);
      const std::vector<float> row(all.begin() + 18 * columns, all.begin() + 19 * columns);
      EXPECT_EQ(row, expected) << header.name << " " << name(isa);
    }
  }
  EXPECT_EQ(records, 15);
}

}  // namespace
}  // namespace qiao::cpu
