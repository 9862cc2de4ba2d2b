#include "formats/gguf.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <set>

#include "formats/gguf_builder.h"
#include "formats/golden.h"
#include "formats/model_files.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"

namespace qiao {
namespace {

using testing::golden;
using testing::golden_expected;
using ::testing::Pointee;

// Name, type, shape, place and bytes of every tensor, as the gguf package reads them.
TEST(GgufTest, ReadsEveryElementTypeAsTheFormatsOwnPackageDoes) {
  const auto file = GgufFile::open(golden("all_types.gguf"));
  const Json expected = golden_expected("all_types.gguf");
  ASSERT_EQ(file->tensors().size(), expected.size());
  std::set<DType> seen;
  for (size_t i = 0; i < expected.size(); ++i) {
    const TensorInfo& tensor = file->tensors()[i];
    SCOPED_TRACE(tensor.name);
    EXPECT_EQ(tensor.name, expected[i]["name"]);
    EXPECT_EQ(tensor.type_name(), expected[i]["type"].get<std::string>());
    EXPECT_EQ(tensor.shape, expected[i]["shape"].get<std::vector<int64_t>>());
    EXPECT_EQ(tensor.offset, expected[i]["offset"].get<uint64_t>());
    ASSERT_EQ(tensor.bytes, expected[i]["bytes"].get<uint64_t>());
    EXPECT_EQ(testing::fnv1a(file->files()[0].bytes().subspan(tensor.offset, tensor.bytes)),
              expected[i]["fnv1a"]);
    seen.insert(tensor.dtype);
  }
  // Every type but U8 and the two of FP8, which GGUF does not have.
  EXPECT_EQ(seen.size(), static_cast<size_t>(kDTypeCount - 3));
}

TEST(GgufTest, ReadsEveryMetadataType) {
  const auto file = GgufFile::open(golden("all_types.gguf"));
  const GgufMetadata& m = file->metadata();
  EXPECT_EQ(file->version(), 3u);
  EXPECT_EQ(m.entries.front().first, "general.architecture");
  EXPECT_THAT(m.find_string("general.architecture"), Pointee(std::string("llama")));
  EXPECT_EQ(m.find_int("value.u8"), 200);
  EXPECT_EQ(m.find_int("value.i8"), -100);
  EXPECT_EQ(m.find_int("value.u16"), 60000);
  EXPECT_EQ(m.find_int("value.i16"), -30000);
  EXPECT_EQ(m.find_int("value.u32"), 4000000000);
  EXPECT_EQ(m.find_int("value.i32"), -2000000000);
  EXPECT_EQ(m.find_int("value.i64"), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(std::get<uint64_t>(*m.find("value.u64")), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(m.find_double("value.f32"), static_cast<double>(0.1f));
  EXPECT_EQ(m.find_double("value.f64"), 0.1);
  EXPECT_EQ(m.find_double("value.i8"), -100.0);
  EXPECT_EQ(m.find_bool("value.true"), true);
  EXPECT_EQ(m.find_bool("value.false"), false);
  EXPECT_THAT(m.find_string("value.string"), Pointee(std::string("桥 and \"quotes\"\n")));
  EXPECT_THAT(m.find_string("value.empty"), Pointee(std::string("")));
  EXPECT_EQ(m.find_ints("array.i32"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(m.find_doubles("array.i32"), (std::vector<double>{1, -2, 3}));
  EXPECT_EQ(m.find_doubles("array.f32"), (std::vector<double>{0.5, -1.25}));
  EXPECT_EQ(m.find_ints("array.bool"), (std::vector<int64_t>{1, 0, 1}));
  EXPECT_EQ(m.find_ints("array.u8"), (std::vector<int64_t>{0, 0x7f, 0xff}));
  EXPECT_THAT(m.find_strings("array.string"), Pointee(std::vector<std::string>{"", "a", "日本語"}));
}

TEST(GgufTest, AbsentKeysGiveNothing) {
  const GgufMetadata m;
  EXPECT_EQ(m.find("x"), nullptr);
  EXPECT_EQ(m.find_int("x"), std::nullopt);
  EXPECT_EQ(m.find_double("x"), std::nullopt);
  EXPECT_EQ(m.find_bool("x"), std::nullopt);
  EXPECT_EQ(m.find_string("x"), nullptr);
  EXPECT_EQ(m.find_strings("x"), nullptr);
  EXPECT_EQ(m.find_ints("x"), std::nullopt);
  EXPECT_EQ(m.find_doubles("x"), std::nullopt);
}

TEST(GgufTest, AKeyOfAnotherTypeNamesFileAndKey) {
  const auto file = GgufFile::open(golden("all_types.gguf"));
  const GgufMetadata& m = file->metadata();
  EXPECT_QIAO_ERROR(m.find_int("value.f32"), kInvalidInput, "all_types.gguf", "\"value.f32\"", "an integer");
  EXPECT_QIAO_ERROR(m.find_int("value.u64"), kInvalidInput, "\"value.u64\"", "18446744073709551615");
  EXPECT_QIAO_ERROR(m.find_int("array.i32"), kInvalidInput, "an integer");
  EXPECT_QIAO_ERROR(m.find_double("value.string"), kInvalidInput, "a number");
  EXPECT_QIAO_ERROR(m.find_bool("value.u8"), kInvalidInput, "a boolean");
  EXPECT_QIAO_ERROR(m.find_string("value.u8"), kInvalidInput, "a string");
  EXPECT_QIAO_ERROR(m.find_strings("array.i32"), kInvalidInput, "an array of strings");
  EXPECT_QIAO_ERROR(m.find_ints("array.f32"), kInvalidInput, "an array of integers");
  EXPECT_QIAO_ERROR(m.find_doubles("array.string"), kInvalidInput, "an array of numbers");
}

TEST(GgufTest, ReadsVersion2AndAFileOfAVocabularyAlone) {
  const auto file = GgufFile::open(golden("version2.gguf"));
  EXPECT_EQ(file->version(), 2u);
  EXPECT_TRUE(file->tensors().empty());
  EXPECT_THAT(file->metadata().find_strings("tokenizer.ggml.tokens"),
              Pointee(std::vector<std::string>{"<s>", "a"}));
}

TEST(GgufTest, NamesABigEndianFile) {
  EXPECT_QIAO_ERROR(GgufFile::open(golden("big_endian.gguf")), kUnsupported, "big_endian.gguf", "big-endian");
}

TEST(GgufSplitTest, OpensTheWholeSetFromAnyPart) {
  for (const char* part :
       {"split-00001-of-00003.gguf", "split-00002-of-00003.gguf", "split-00003-of-00003.gguf"}) {
    SCOPED_TRACE(part);
    const auto file = GgufFile::open(golden(part));
    ASSERT_EQ(file->files().size(), 3u);
    EXPECT_THAT(file->metadata().find_string("general.architecture"), Pointee(std::string("llama")));
    size_t next = 0;
    for (size_t number = 0; number < 3; ++number) {
      for (const Json& expected : golden_expected(fmt::format("split-{:05}-of-00003.gguf", number + 1))) {
        const TensorInfo& tensor = file->tensors().at(next++);
        EXPECT_EQ(tensor.name, expected["name"]);
        EXPECT_EQ(tensor.file, number);
        EXPECT_EQ(testing::fnv1a(file->files()[number].bytes().subspan(tensor.offset, tensor.bytes)),
                  expected["fnv1a"]);
      }
    }
    EXPECT_EQ(next, file->tensors().size());
  }
}

class SplitDirectory : public ::testing::Test {
 protected:
  // One part, with one tensor of the name given.
  void write_part(int file_number, int number, int count, const std::string& tensor, int total = 2) {
    directory.write(fmt::format("m-{:05}-of-00002.gguf", file_number),
                    testing::GgufBuilder()
                        .number<uint16_t>("split.no", testing::kGgufU16, static_cast<uint16_t>(number))
                        .number<uint16_t>("split.count", testing::kGgufU16, static_cast<uint16_t>(count))
                        .number<int32_t>("split.tensors.count", testing::kGgufI32, total)
                        .tensor(tensor, {8})
                        .data(32)
                        .build());
  }
  auto open(const std::string& name) { return GgufFile::open(directory.path() / name); }
  testing::TemporaryDirectory directory;
};

TEST_F(SplitDirectory, AMissingPartIsNamed) {
  write_part(1, 0, 2, "a");
  EXPECT_QIAO_ERROR(open("m-00001-of-00002.gguf"), kNotFound, "m-00002-of-00002.gguf", "part 2 of 2");
}

TEST_F(SplitDirectory, APartThatSaysItIsAnotherIsRefused) {
  write_part(1, 0, 2, "a");
  write_part(2, 0, 2, "b");
  EXPECT_QIAO_ERROR(open("m-00001-of-00002.gguf"), kInvalidInput, "m-00002-of-00002.gguf", "part 1 of 2",
                    "part 2 of 2 was expected");
}

TEST_F(SplitDirectory, APartOfAnotherSetIsRefused) {
  write_part(1, 0, 2, "a");
  write_part(2, 1, 3, "b");
  EXPECT_QIAO_ERROR(open("m-00001-of-00002.gguf"), kInvalidInput, "part 2 of 3");
}

TEST_F(SplitDirectory, AFileThatIsNoPartIsRefusedAsOne) {
  write_part(1, 0, 2, "a");
  directory.write("m-00002-of-00002.gguf", testing::GgufBuilder().tensor("b", {8}).data(32).build());
  EXPECT_QIAO_ERROR(open("m-00001-of-00002.gguf"), kInvalidInput, "part 1 of 1");
}

TEST_F(SplitDirectory, ANumberBeyondTheCountIsRefused) {
  write_part(1, 2, 2, "a");
  EXPECT_QIAO_ERROR(open("m-00001-of-00002.gguf"), kInvalidInput, "split.no", "0 to 1");
}

TEST_F(SplitDirectory, ANameWithoutTheNumbersIsExplained) {
  write_part(1, 0, 2, "a");
  std::filesystem::rename(directory.path() / "m-00001-of-00002.gguf", directory.path() / "renamed.gguf");
  EXPECT_QIAO_ERROR(open("renamed.gguf"), kInvalidInput, "renamed.gguf", "-00001-of-00002.gguf");
}

TEST_F(SplitDirectory, ATensorInTwoPartsIsRefused) {
  write_part(1, 0, 2, "a");
  write_part(2, 1, 2, "a");
  EXPECT_QIAO_ERROR(open("m-00001-of-00002.gguf"), kInvalidInput, "m-00002-of-00002.gguf", "\"a\"",
                    "earlier part");
}

TEST_F(SplitDirectory, TheStatedTotalOfTensorsMustHold) {
  write_part(1, 0, 2, "a", 3);
  write_part(2, 1, 2, "b", 3);
  EXPECT_QIAO_ERROR(open("m-00001-of-00002.gguf"), kInvalidInput, "split.tensors.count is 3", "2 tensors");
}

TEST(GgufTest, AnUnsupportedTypeIsListedWhereAskedForAndItsBytesRefused) {
  const testing::TemporaryDirectory directory;
  constexpr uint32_t kIq2Xxs = 16;
  const auto path = directory.write(
      "m.gguf",
      testing::GgufBuilder().tensor("w", {256, 2}, kIq2Xxs).tensor("v", {8}, 0, 160).data(192).build());
  EXPECT_QIAO_ERROR(GgufFile::open(path), kUnsupported, "m.gguf", "\"w\"", "IQ2_XXS");
  const auto model = ModelFiles::open(path, {.need_usable = false});
  ASSERT_EQ(model->tensors().size(), 2u);
  const TensorInfo& tensor = model->tensors()[0];
  EXPECT_EQ(tensor.type_name(), "IQ2_XXS");
  EXPECT_EQ(tensor.bytes, 2u * 66u);  // 66 bytes a block of 256
  EXPECT_QIAO_ERROR(model->bytes(tensor), kUnsupported, "m.gguf", "\"w\"", "IQ2_XXS");
  EXPECT_EQ(model->bytes(model->tensors()[1]).size(), 32u);
}

}  // namespace
}  // namespace qiao
