// Files that are cut short, bit-flipped or built to harm: each gives one line that names the culprit.
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "formats/gguf.h"
#include "formats/gguf_builder.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

using testing::GgufBuilder;

constexpr uint64_t kHuge = uint64_t{1} << 60;
constexpr uint64_t kMax = ~uint64_t{0};

struct GgufCase {
  std::string name;
  std::string bytes;
  ErrorKind kind = ErrorKind::kInvalidInput;
  std::vector<std::string_view> parts;
  std::string (*make)() = nullptr;  // what is of many megabytes is made by its own test alone
};

void PrintTo(const GgufCase& c, std::ostream* out) { *out << c.name; }

GgufBuilder with(void (*change)(GgufBuilder&)) {
  GgufBuilder builder;
  change(builder);
  return builder;
}

// A metadata entry with a key and any bytes after it.
std::string entry(std::string_view key, std::string_view rest) {
  std::string bytes;
  GgufBuilder::put_string(bytes, key);
  return bytes + std::string(rest);
}

template <typename... T>
std::string raw(T... values) {
  std::string bytes;
  (GgufBuilder::put(bytes, values), ...);
  return bytes;
}

GgufBuilder aligned_to(uint32_t alignment) {
  return GgufBuilder().number("general.alignment", testing::kGgufU32, alignment).tensor("w", {8}).data(32);
}

std::vector<GgufCase> gguf_cases() {
  const auto kInvalid = ErrorKind::kInvalidInput;
  const auto kUnsupported = ErrorKind::kUnsupported;
  std::vector<GgufCase> all = {
      {"Empty", "", kInvalid, {"not a GGUF file"}},
      {"NotGguf", "PK\x03\x04 some archive", kInvalid, {"not a GGUF file", "\"PK\\x03\\x04\""}},
      {"LfsPointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n", kInvalid, {"Git LFS pointer"}},
      {"OldGgml", std::string("tjgg\3\0\0\0", 8), kUnsupported, {"before GGUF"}},
      {"MagicOnly", "GGUF", kInvalid, {"byte 4", "the version", "4 are missing"}},
      {"VersionZero", with([](auto& b) { b.version = 0; }).build(), kUnsupported, {"version 0", "2 and 3"}},
      {"VersionOne", with([](auto& b) { b.version = 1; }).build(), kUnsupported, {"version 1", "2 and 3"}},
      {"VersionFour", with([](auto& b) { b.version = 4; }).build(), kUnsupported, {"version 4", "2 and 3"}},
      {"BigEndian", with([](auto& b) { b.version = 0x03000000; }).build(), kUnsupported, {"big-endian"}},
      {"BillionsOfTensors",
       with([](auto& b) { b.tensor_count = 4'000'000'000; }).build(),
       kInvalid,
       {"4000000000 tensors", "100000000000 bytes", "are missing"}},
      {"MostTensors", with([](auto& b) { b.tensor_count = kMax; }).build(), kInvalid, {"over 2^64 bytes"}},
      {"BillionsOfEntries",
       with([](auto& b) { b.entry_count = 4'000'000'000; }).build(),
       kInvalid,
       {"4000000000 entries", "are missing"}},
      {"MostEntries", with([](auto& b) { b.entry_count = kMax; }).build(), kInvalid, {"over 2^64 bytes"}},
      {"TooManyEntriesForTheLimit", "", ErrorKind::kTooLarge, {"65537", "65536"},
       [] {
         GgufBuilder b;
         b.entry_count = kMaxGgufEntries + 1;
         return b.build() + std::string(15 * (kMaxGgufEntries + 1), '\0');
       }},
      {"OneEntryFewerThanStated",
       with([](auto& b) { b.text("a", "some text").entry_count = 2; }).build(),
       kInvalid,
       {"a metadata key", "are missing"}},

      {"EmptyKey", GgufBuilder().number<uint8_t>("", testing::kGgufU8, 1).build() + "padding", kInvalid, {"0 bytes long"}},
      {"LongKey",
       GgufBuilder().text(std::string(65536, 'k'), "v").build(),
       kInvalid,
       {"a metadata key is 65536 bytes long", "65535"}},
      {"KeyLongerThanTheFile",
       GgufBuilder().raw_entry(raw(uint64_t{5000}) + "key and more").build(),
       kInvalid,
       {"byte 32", "5000 bytes", "4988 are missing"}},
      {"KeyLengthOverflows", GgufBuilder().raw_entry(raw(kMax) + "key and more").build(), kInvalid, {"byte 24"}},
      {"KeyTwice",
       GgufBuilder().text("general.name", "x").text("general.name", "y").build(),
       kInvalid,
       {"\"general.name\" stands twice"}},
      {"KeyWithControlCharacters",
       GgufBuilder().number<uint32_t>("a\nb\x1b[2J", 99, 0).build(),
       kInvalid,
       {"\"a\\x0ab\\x1b[2J\""}},
      {"ValueTypeUnknown", GgufBuilder().number<uint32_t>("k", 13, 0).build(), kInvalid, {"\"k\"", "13 is not a value type"}},
      {"ValueTypeMax", GgufBuilder().number<uint32_t>("k", 0xffffffff, 0).build(), kInvalid, {"4294967295"}},
      {"BooleanTwo", GgufBuilder().number<uint8_t>("k", testing::kGgufBool, 2).build(), kInvalid, {"\"k\"", "0 or 1, not 2"}},
      {"BooleanInArray",
       GgufBuilder().array("k", testing::kGgufBool, 3, std::string("\1\0\xff", 3)).build(),
       kInvalid,
       {"\"k\"", "0 or 1, not 255"}},
      {"StringLongerThanTheFile",
       GgufBuilder().raw_entry(entry("k", raw(uint32_t{testing::kGgufString}, kHuge))).build(),
       kInvalid,
       {"\"k\"", "1152921504606846976 bytes", "are missing"}},
      {"StringLengthOverflows",
       GgufBuilder().raw_entry(entry("k", raw(uint32_t{testing::kGgufString}, kMax))).build(),
       kInvalid,
       {"\"k\"", "18446744073709551615 bytes"}},

      {"ArrayOfHugeManyStrings",
       GgufBuilder().array("k", testing::kGgufString, kHuge, "").build(),
       kInvalid,
       {"\"k\"", "are missing"}},
      {"ArrayOfMostStrings", GgufBuilder().array("k", testing::kGgufString, kMax, "").build(), kInvalid, {"over 2^64"}},
      {"ArrayOfHugeManyBytes", GgufBuilder().array("k", testing::kGgufU8, kHuge, "").build(), kInvalid, {"\"k\""}},
      {"ArrayOfHugeManyDoubles",
       GgufBuilder().array("k", testing::kGgufF64, kHuge * 2, "").build(),
       kInvalid,
       {"\"k\"", "over 2^64"}},
      {"ArrayOneShort",
       GgufBuilder().array("k", testing::kGgufU32, 3, std::string(8, '\0')).build(),
       kInvalid,
       {"12 bytes", "8 more", "4 are missing"}},
      {"ArrayOverTheLimit", "", ErrorKind::kTooLarge, {"\"k\"", "16777217", "16777216"},
       [] {
         return GgufBuilder()
             .array("k", testing::kGgufU8, kMaxGgufArrayElements + 1, std::string(kMaxGgufArrayElements + 1, 'x'))
             .build();
       }},
      {"ArraysTogetherOverTheLimit", "", ErrorKind::kTooLarge, {"\"l\""},
       [] {
         return GgufBuilder()
             .array("k", testing::kGgufU8, kMaxGgufArrayElements, std::string(kMaxGgufArrayElements, 'x'))
             .array("l", testing::kGgufU8, 1, "x")
             .build();
       }},
      {"ArrayOfArrays",
       GgufBuilder().array("k", testing::kGgufArray, 1, raw(uint32_t{4}, uint64_t{0})).build(),
       kUnsupported,
       {"\"k\"", "array of arrays"}},
      {"ArrayOfUnknownType", GgufBuilder().array("k", 77, 1, "xxxx").build(), kInvalid, {"\"k\"", "77"}},
      {"StringInArrayLongerThanTheFile",
       GgufBuilder().array("k", testing::kGgufString, 2, raw(uint64_t{1}) + "a" + raw(kHuge)).build(),
       kInvalid,
       {"\"k\"", "are missing"}},

      {"AlignmentZero", aligned_to(0).build(), kInvalid, {"general.alignment is 0", "power of two"}},
      {"AlignmentOdd", aligned_to(48).build(), kInvalid, {"general.alignment is 48"}},
      {"AlignmentTiny", aligned_to(1).build(), kInvalid, {"general.alignment is 1"}},
      {"AlignmentHuge", aligned_to(0x80000000u).build(), kInvalid, {"general.alignment is 2147483648"}},
      {"AlignmentNegative",
       GgufBuilder().number<int64_t>("general.alignment", testing::kGgufI64, -32).build(),
       kInvalid,
       {"general.alignment is -32"}},
      {"AlignmentIsText",
       GgufBuilder().text("general.alignment", "32").build(),
       kInvalid,
       {"\"general.alignment\"", "an integer"}},

      {"TensorWithoutName", GgufBuilder().tensor("", {8}).data(32).build(), kInvalid, {"a tensor's name is 0 bytes"}},
      {"TensorTwice",
       GgufBuilder().tensor("w", {8}).tensor("w", {8}, 0, 32).data(64).build(),
       kInvalid,
       {"\"w\" stands twice"}},
      {"TensorOfFiveDimensions",
       GgufBuilder().tensor("w", {1, 1, 1, 1, 1}).data(32).build(),
       kInvalid,
       {"\"w\" has 5 dimensions"}},
      {"TensorOfFourBillionDimensions",
       [] {
         GgufBuilder b;
         b.tensor_count = 1;
         std::string bytes = b.build();
         GgufBuilder::put_string(bytes, "w");
         return bytes + raw(uint32_t{0xffffffff}) + std::string(64, '\0');
       }(),
       kInvalid,
       {"\"w\" has 4294967295 dimensions"}},
      {"DimensionNegative", GgufBuilder().tensor("w", {kMax}).data(32).build(), kInvalid, {"\"w\"", "2^63"}},
      {"DimensionsOverflow",
       GgufBuilder().tensor("w", {uint64_t{1} << 32, uint64_t{1} << 32}).data(32).build(),
       kInvalid,
       {"\"w\"", "over 2^63"}},
      {"DimensionsOverflowToASmallProduct",
       GgufBuilder().tensor("w", {uint64_t{1} << 62, 4, 8}).data(32).build(),
       kInvalid,
       {"\"w\"", "over 2^63"}},
      {"DimensionsOverflowBesideAZero",
       GgufBuilder().tensor("w", {0, uint64_t{1} << 33, uint64_t{1} << 49}).data(32).build(),
       kInvalid,
       {"\"w\"", "over 2^63"}},
      {"BytesOverflow",
       GgufBuilder().tensor("w", {uint64_t{1} << 62}).data(32).build(),
       kInvalid,
       {"\"w\"", "over 2^64 bytes"}},
      {"TypeUnknown", GgufBuilder().tensor("w", {8}, 4242).data(32).build(), kInvalid, {"\"w\"", "4242"}},
      {"TypeTakenOut", GgufBuilder().tensor("w", {32}, 31).data(32).build(), kUnsupported, {"\"w\"", "Q4_0_4_4"}},
      {"TypeUnsupported", GgufBuilder().tensor("w", {256}, 29).data(64).build(), kUnsupported, {"\"w\"", "IQ1_M"}},
      {"RowNotAMultipleOfTheBlock",
       GgufBuilder().tensor("w", {48, 2}, 8).data(102).build(),
       kInvalid,
       {"\"w\"", "rows of 48", "Q8_0", "32"}},
      {"OffsetNotAligned", GgufBuilder().tensor("w", {8}, 0, 16).data(64).build(), kInvalid, {"\"w\"", "16", "32"}},
      {"OffsetOverflows",
       GgufBuilder().tensor("w", {8}, 0, kMax - 31).data(64).build(),
       kInvalid,
       {"\"w\"", "2^64"}},
      {"OffsetBeyondTheFile",
       GgufBuilder().tensor("w", {8}, 0, kHuge).data(64).build(),
       kInvalid,
       {"\"w\"", "are missing"}},
      {"DataCutShort",
       GgufBuilder().tensor("v", {8}).tensor("w", {8}, 0, 32).data(63).build(),
       kInvalid,
       {"1 are missing", "\"w\""}},
      {"NoData", GgufBuilder().tensor("w", {8}).build(), kInvalid, {"are missing", "\"w\""}},
      {"TensorsOverlap",
       GgufBuilder().tensor("v", {16}).tensor("w", {8}, 0, 32).data(64).build(),
       kInvalid,
       {"\"v\" and \"w\" overlap"}},
      {"TensorsAtOnePlace", GgufBuilder().tensor("v", {8}).tensor("w", {8}).data(64).build(), kInvalid, {"overlap"}},
  };
  return all;
}

class GgufHostileTest : public ::testing::TestWithParam<GgufCase> {};

TEST_P(GgufHostileTest, GivesOneLineThatNamesTheCulprit) {
  const GgufCase& c = GetParam();
  const std::string bytes = c.make != nullptr ? c.make() : c.bytes;
  try {
    parse_gguf(testing::as_bytes(bytes), "m.gguf");
    FAIL() << "not refused";
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(e.kind(), c.kind) << message;
    EXPECT_TRUE(message.starts_with("m.gguf: ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 400u) << message;
    for (const std::string_view part : c.parts)
      EXPECT_NE(message.find(part), std::string::npos) << part << " / " << message;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgufHostileTest, ::testing::ValuesIn(gguf_cases()),
                         [](const auto& info) { return info.param.name; });

// Small, with something of everything that the format has.
std::string gguf_sample() {
  return GgufBuilder()
      .text("general.architecture", "llama")
      .number<uint32_t>("general.alignment", testing::kGgufU32, 32)
      .number<float>("f", testing::kGgufF32, 1.5f)
      .number<uint8_t>("b", testing::kGgufBool, 1)
      .array("s", testing::kGgufString, 2, raw(uint64_t{1}) + "x" + raw(uint64_t{0}))
      .array("i", testing::kGgufI16, 3, std::string(6, '\1'))
      .tensor("v", {8})
      .tensor("q", {32, 2}, 2, 32)
      .tensor("none", {0, 4}, 1, 96)
      .data(96)
      .build();
}

TEST(GgufDamageTest, TheSampleItselfIsFine) {
  const std::string bytes = gguf_sample();
  const GgufHeader header = parse_gguf(testing::as_bytes(bytes), "m.gguf", TypePolicy::kListUnsupported);
  EXPECT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[1].shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(header.tensors[2].bytes, 0u);
}

TEST(GgufDamageTest, CutShortAtAnyByteIsRefused) {
  const std::string whole = gguf_sample();
  for (size_t length = 0; length < whole.size(); ++length) {
    const std::string bytes = whole.substr(0, length);  // its own allocation: a read beyond it is seen
    SCOPED_TRACE(length);
    EXPECT_QIAO_ERROR(parse_gguf(testing::as_bytes(bytes), "m.gguf"), kInvalidInput, "m.gguf");
  }
}

// Each flip gives a parse whose tensors lie inside the file, or an Error of one line.
TEST(GgufDamageTest, EverySingleBitFlipParsesOrIsRefused) {
  const std::string whole = gguf_sample();
  size_t refused = 0;
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    try {
      const GgufHeader header = parse_gguf(testing::as_bytes(bytes), "m.gguf");
      for (const TensorInfo& tensor : header.tensors) {
        ASSERT_LE(tensor.bytes, bytes.size());
        ASSERT_LE(tensor.offset, bytes.size() - (tensor.elements() == 0 ? 0 : tensor.bytes)) << "bit " << bit;
      }
    } catch (const Error& e) {
      ++refused;
      ASSERT_EQ(std::string_view(e.what()).find('\n'), std::string_view::npos) << e.what();
    }
  }
  EXPECT_GT(refused, whole.size());  // most of the header's bits carry lengths, counts and types
}

}  // namespace
}  // namespace qiao
