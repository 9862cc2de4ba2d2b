#include "formats/safetensors_write.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "formats/safetensors.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"

namespace qiao {
namespace {

TEST(SafetensorsWriteTest, WritesTheFormatAsItsHomeDefinesIt) {
  const testing::TemporaryDirectory folder;
  const std::vector<float> floats = {1.0f, -2.0f};
  const std::vector<uint16_t> halves = {0x3f80};  // 1 in BF16
  const std::vector<TensorToWrite> tensors = {
      {"a", DType::kF32, {2}, [&] { return std::as_bytes(std::span(floats)); }},
      {"b", DType::kBF16, {1, 1}, [&] { return std::as_bytes(std::span(halves)); }}};
  const auto path = folder.path() / "m.safetensors";
  write_safetensors(path, tensors, {{"format", "pt"}});
  std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"BF16","shape":[1,1],"data_offsets":[8,10]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string expected(8, '\0');
  expected[0] = static_cast<char>(header.size());
  expected += header + std::string("\x00\x00\x80\x3f\x00\x00\x00\xc0\x80\x3f", 10);
  EXPECT_EQ(read_file(path), expected);
  const SafetensorsFiles read = open_safetensors(path, TypePolicy::kRefuseUnsupported);
  ASSERT_EQ(read.tensors.size(), 2u);
  EXPECT_EQ(read.tensors[1].name, "b");
}

TEST(SafetensorsWriteTest, LeavesTheOldFileWhereItCannotWrite) {
  const testing::TemporaryDirectory folder;
  EXPECT_QIAO_ERROR(write_safetensors(folder.path() / "none" / "m.safetensors", {}), kNotFound,
                    "m.safetensors");
  const auto path = folder.path() / "m.safetensors";
  write_file_atomically(path, "old");
  const std::vector<TensorToWrite> tensors = {
      {"a", DType::kF32, {1}, []() -> std::span<const std::byte> { throw std::runtime_error("gone"); }}};
  EXPECT_THROW(write_safetensors(path, tensors), std::runtime_error);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

}  // namespace
}  // namespace qiao
