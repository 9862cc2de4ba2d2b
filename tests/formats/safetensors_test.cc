#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <map>
#include <ostream>
#include <set>

#include "formats/gguf_builder.h"
#include "formats/golden.h"
#include "formats/safetensors_builder.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

using testing::as_bytes;
using testing::golden;
using testing::one_tensor;
using testing::safetensors_file;

SafetensorsHeader parse(const std::string& bytes, TypePolicy policy = TypePolicy::kRefuseUnsupported) {
  return parse_safetensors(as_bytes(bytes), bytes.size(), "m.safetensors", policy);
}

void expect_same(const SafetensorsFiles& files, const Json& expected) {
  std::map<std::string, Json> by_name;
  for (const Json& tensor : expected) by_name[tensor["name"]] = tensor;
  ASSERT_EQ(files.tensors.size(), by_name.size());
  for (const TensorInfo& tensor : files.tensors) {
    SCOPED_TRACE(tensor.name);
    ASSERT_TRUE(by_name.contains(tensor.name));
    const Json& want = by_name[tensor.name];
    const std::string type = want["type"] == "BOOL" ? "U8" : want["type"];
    EXPECT_EQ(tensor.type_name(), type);
    EXPECT_EQ(tensor.shape, want["shape"].get<std::vector<int64_t>>());
    ASSERT_EQ(tensor.bytes, want["bytes"].get<uint64_t>());
    const auto bytes = files.files.at(tensor.file).bytes().subspan(tensor.offset, tensor.bytes);
    EXPECT_EQ(testing::fnv1a(bytes), want["fnv1a"]);
  }
}

TEST(SafetensorsTest, ReadsEveryElementTypeAsTheFormatsOwnPackageDoes) {
  const SafetensorsFiles files =
      open_safetensors(golden("all_types.safetensors"), TypePolicy::kRefuseUnsupported);
  expect_same(files, testing::golden_expected("all_types.safetensors"));
  ASSERT_EQ(files.metadata.size(), 1u);
  EXPECT_EQ(files.metadata[0].first, "note");
  EXPECT_EQ(files.metadata[0].second, "桥");
}

TEST(SafetensorsTest, ReadsShardsAsTransformersWroteThem) {
  const SafetensorsFiles files =
      open_safetensors_index(golden("sharded/model.safetensors.index.json"), TypePolicy::kRefuseUnsupported);
  EXPECT_EQ(files.files.size(), 3u);
  expect_same(files, testing::golden_expected("sharded"));
}

TEST(SafetensorsTest, AFileOfNoTensorsIsFine) {
  EXPECT_TRUE(parse(safetensors_file("{}", 0)).tensors.empty());
  EXPECT_TRUE(parse(safetensors_file("{\"__metadata__\":{}}    ", 0)).tensors.empty());
}

TEST(SafetensorsTest, AnUnsupportedTypeIsListedWhereAskedFor) {
  const std::string file = safetensors_file(one_tensor("F4", "[2,4]", "[0,4]"), 4);
  EXPECT_QIAO_ERROR(parse(file), kUnsupported, "m.safetensors", "\"w\"", "F4");
  const SafetensorsHeader header = parse(file, TypePolicy::kListUnsupported);
  EXPECT_EQ(header.tensors.at(0).type_name(), "F4");
  EXPECT_EQ(header.tensors.at(0).bytes, 4u);
}

struct SafetensorsCase {
  std::string name;
  std::string bytes;
  ErrorKind kind = ErrorKind::kInvalidInput;
  std::vector<std::string_view> parts;
};

void PrintTo(const SafetensorsCase& c, std::ostream* out) { *out << c.name; }

std::vector<SafetensorsCase> safetensors_cases() {
  const auto kInvalid = ErrorKind::kInvalidInput;
  const auto kUnsupported = ErrorKind::kUnsupported;
  const std::string good = one_tensor("F32", "[2]", "[0,8]");
  const auto two = [](std::string_view a, std::string_view b) {
    return "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + std::string(a) +
           "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + std::string(b) + "}}";
  };
  return {
      {"Empty", "", kInvalid, {"0 bytes", "10 are missing"}},
      {"LengthCutShort", std::string(7, '\0'), kInvalid, {"7 bytes", "3 are missing"}},
      {"LengthZero", safetensors_file("{}", 0, 0), kInvalid, {"header of 0 bytes"}},
      {"LengthHuge", safetensors_file("{}", 0, uint64_t{1} << 60), kInvalid, {"1152921504606846976"}},
      {"LengthMost", safetensors_file("{}", 0, ~uint64_t{0}), kInvalid, {"18446744073709551615"}},
      {"LengthOverTheFormatsLimit",
       safetensors_file("{}", 0, 100'000'001),
       kInvalid,
       {"100000001", "100000000"}},
      {"LengthBeyondTheFile",
       safetensors_file("{}", 0, 50),
       kInvalid,
       {"50 bytes", "2 more", "48 are missing"}},
      {"LfsPointer", "version https://git-lfs.github.com/spec/v1\n", kInvalid, {"Git LFS pointer"}},
      {"NotAnObject", safetensors_file("[]", 0), kInvalid, {"byte 8", "'{'"}},
      {"NotJson", safetensors_file("{\"a\":}", 0), kInvalid, {"not valid JSON", "byte"}},
      {"JsonCutShort", safetensors_file("{\"a\":{", 0), kInvalid, {"not valid JSON"}},
      {"TwoValues", safetensors_file("{}{}", 0), kInvalid, {"not valid JSON"}},
      {"BrokenUtf8", safetensors_file("{\"\xff\":{}}", 0), kInvalid, {"not valid JSON"}},
      {"DeepArrays",
       safetensors_file("{\"a\":" + std::string(100'000, '['), 0),
       kInvalid,
       {"\"a\"", "an array"}},
      {"DeepObjects", safetensors_file("{\"a\":{\"b\":{\"c\":{", 0), kInvalid, {"\"b\""}},
      {"TensorIsNumber", safetensors_file("{\"w\":1}", 0), kInvalid, {"\"w\"", "a number"}},
      {"TensorIsNull", safetensors_file("{\"w\":null}", 0), kInvalid, {"\"w\"", "null"}},
      {"TensorIsText", safetensors_file("{\"w\":\"x\"}", 0), kInvalid, {"\"w\"", "a string"}},
      {"EmptyName", safetensors_file("{\"\":{}}", 0), kInvalid, {"an empty name"}},
      {"NameTwice",
       safetensors_file(good.substr(0, good.size() - 1) + "," + good.substr(1), 8),
       kInvalid,
       {"\"w\"", "twice"}},
      {"MetadataOfNumbers",
       safetensors_file("{\"__metadata__\":{\"a\":1}}", 0),
       kInvalid,
       {"__metadata__", "\"a\""}},
      {"FieldUnknown",
       safetensors_file("{\"w\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"x\":1}}", 4),
       kInvalid,
       {"\"w\"", "\"x\""}},
      {"FieldMissing",
       safetensors_file("{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8),
       kInvalid,
       {"\"w\"", "data_offsets"}},
      {"FieldTwice",
       safetensors_file("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"shape\":[2],\"data_offsets\":[0,8]}}", 8),
       kInvalid,
       {"\"w\"", "stands twice"}},
      {"FieldTwiceInPlaceOfAnother",
       safetensors_file("{\"w\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4),
       kInvalid,
       {"\"w\"", "stands twice"}},
      {"TypeUnknown",
       safetensors_file(one_tensor("F33", "[2]", "[0,8]"), 8),
       kUnsupported,
       {"\"w\"", "\"F33\""}},
      {"TypeUnsupported",
       safetensors_file(one_tensor("F8_E5M2", "[8]", "[0,8]"), 8),
       kUnsupported,
       {"\"w\"", "F8_E5M2"}},
      {"TypeIsNumber", safetensors_file("{\"w\":{\"dtype\":4}}", 0), kInvalid, {"\"w\"", "\"dtype\""}},
      {"ShapeNegative",
       safetensors_file(one_tensor("F32", "[-2]", "[0,8]"), 8),
       kInvalid,
       {"\"shape\"", "negative"}},
      {"ShapeFraction",
       safetensors_file(one_tensor("F32", "[2.0]", "[0,8]"), 8),
       kInvalid,
       {"\"shape\"", "integer"}},
      {"ShapeNested",
       safetensors_file(one_tensor("F32", "[[2]]", "[0,8]"), 8),
       kInvalid,
       {"\"shape\"", "an array"}},
      {"ShapeOver63Bits",
       safetensors_file(one_tensor("F32", "[9223372036854775808]", "[0,8]"), 8),
       kInvalid,
       {"\"shape\"", "2^63"}},
      {"ShapeOver64Bits",
       safetensors_file(one_tensor("F32", "[99999999999999999999]", "[0,8]"), 8),
       kInvalid,
       {"\"shape\"", "2^64"}},
      {"ShapeOverflows",
       safetensors_file(one_tensor("F32", "[4294967296,4294967296,4]", "[0,8]"), 8),
       kInvalid,
       {"\"w\"", "over 2^63"}},
      {"ShapeOverflowsBesideAZero",
       safetensors_file(one_tensor("F32", "[0,4294967296,4294967296]", "[0,0]"), 8),
       kInvalid,
       {"\"w\"", "over 2^63"}},
      {"BytesOverflow",
       safetensors_file(one_tensor("F64", "[4611686018427387904]", "[0,8]"), 8),
       kInvalid,
       {"\"w\"", "2^64 bits"}},
      {"TooManyDimensions",
       safetensors_file(
           one_tensor("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]"),
           1),
       kInvalid,
       {"\"w\"", "32 dimensions"}},
      {"OffsetsOfOne",
       safetensors_file(one_tensor("F32", "[2]", "[0]"), 8),
       kInvalid,
       {"data_offsets", "two numbers"}},
      {"OffsetsOfThree",
       safetensors_file(one_tensor("F32", "[2]", "[0,8,8]"), 8),
       kInvalid,
       {"data_offsets", "two"}},
      {"OffsetsReversed",
       safetensors_file(one_tensor("F32", "[2]", "[8,0]"), 8),
       kInvalid,
       {"\"w\"", "[8, 0]"}},
      {"OffsetsTooNarrow",
       safetensors_file(one_tensor("F32", "[2]", "[0,4]"), 4),
       kInvalid,
       {"\"w\"", "the 8 bytes"}},
      {"OffsetsBeyondTheFile",
       safetensors_file(one_tensor("F32", "[2]", "[0,8]"), 5),
       kInvalid,
       {"3 are missing", "cut short"}},
      {"OffsetsNear2To64",
       safetensors_file(one_tensor("U8", "[4]", "[18446744073709551611,18446744073709551615]"), 4),
       kInvalid,
       {"\"w\""}},
      {"SixBitsNotWholeBytes",
       safetensors_file(one_tensor("F6_E2M3", "[3]", "[0,3]"), 3),
       kUnsupported,
       {"F6_E2M3"}},
      {"Overlap", safetensors_file(two("[0,4]", "[2,6]"), 6), kInvalid, {"\"b\"", "overlap"}},
      {"SamePlace", safetensors_file(two("[0,4]", "[0,4]"), 4), kInvalid, {"overlap"}},
      {"Hole", safetensors_file(two("[0,4]", "[5,9]"), 9), kInvalid, {"\"b\"", "no hole"}},
      {"HoleAtTheStart", safetensors_file(two("[4,8]", "[8,12]"), 12), kInvalid, {"\"a\"", "no hole"}},
      {"BytesAfterTheEnd", safetensors_file(good, 9), kInvalid, {"1 bytes after the last tensor"}},
  };
}

class SafetensorsHostileTest : public ::testing::TestWithParam<SafetensorsCase> {};

TEST_P(SafetensorsHostileTest, GivesOneLineThatNamesTheCulprit) {
  const SafetensorsCase& c = GetParam();
  try {
    parse(c.bytes);
    FAIL() << "not refused";
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(e.kind(), c.kind) << message;
    EXPECT_TRUE(message.starts_with("m.safetensors: ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 400u) << message;
    for (const std::string_view part : c.parts) {
      EXPECT_NE(message.find(part), std::string::npos) << part << " / " << message;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SafetensorsHostileTest, ::testing::ValuesIn(safetensors_cases()),
                         [](const auto& info) { return info.param.name; });

std::string safetensors_sample() {
  return safetensors_file(
      "{\"__metadata__\":{\"format\":\"pt\"},"
      "\"a\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]},"
      "\"b\":{\"data_offsets\":[8,14],\"shape\":[3],\"dtype\":\"BF16\"}}",
      14);
}

TEST(SafetensorsDamageTest, TheSampleItselfIsFine) {
  const SafetensorsHeader header = parse(safetensors_sample());
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[1].dtype, DType::kBF16);
  EXPECT_EQ(header.tensors[1].offset, header.header_bytes + 8);
}

TEST(SafetensorsDamageTest, CutShortAtAnyByteIsRefused) {
  const std::string whole = safetensors_sample();
  for (size_t length = 0; length < whole.size(); ++length) {
    const std::string bytes = whole.substr(0, length);
    SCOPED_TRACE(length);
    EXPECT_QIAO_ERROR(parse(bytes), kInvalidInput, "m.safetensors");
  }
}

TEST(SafetensorsDamageTest, EverySingleBitFlipParsesOrIsRefused) {
  const std::string whole = safetensors_sample();
  size_t refused = 0;
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    try {
      for (const TensorInfo& tensor : parse(bytes).tensors) {
        ASSERT_LE(tensor.bytes, bytes.size());
        ASSERT_LE(tensor.offset, bytes.size() - tensor.bytes) << "bit " << bit;
      }
    } catch (const Error& e) {
      ++refused;
      ASSERT_EQ(std::string_view(e.what()).find('\n'), std::string_view::npos) << e.what();
    }
  }
  EXPECT_GT(refused, whole.size() * 4);  // at least half of the bits: JSON is brittle
}

}  // namespace
}  // namespace qiao
