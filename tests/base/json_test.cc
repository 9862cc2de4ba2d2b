#include "base/json.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace qiao {
namespace {

TEST(JsonTest, RefusesWhatIsNestedDeeperThanTheLimit) {
  const std::string deep(200, '[');
  try {
    parse_json(deep, "request body");
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kInvalidInput);
    EXPECT_STREQ(e.what(), "request body: byte 128: JSON nested deeper than 128");
  }
}

TEST(JsonTest, BracketsInsideStringsDoNotCount) {
  EXPECT_EQ(parse_json("[\"" + std::string(500, '[') + "\\\"[\"]", "x").size(), 1u);
}

TEST(JsonTest, NamesTheByteOfASyntaxError) {
  try {
    parse_json("{\"a\": 1,}", "config.json");
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).substr(0, 20), "config.json: byte 9:");
  }
}

TEST(JsonTest, RefusesTextOverTheLimitBeforeParsing) {
  EXPECT_THROW(parse_json("[1,2,3]", "x", {.max_bytes = 3}), Error);
}

TEST(JsonTest, AnErrorShowsNoMoreThanALine) {
  const std::string long_text = "[\"" + std::string(1'000'000, 'x') + "\" \"";
  for (const std::string& text :
       {long_text, "[1e" + std::string(100'000, '9') + "]", std::string("[\"a\nb\x1b\"]")}) {
    try {
      parse_json(text, "x");
      FAIL() << "not refused";
    } catch (const Error& e) {
      const std::string_view what = e.what();
      EXPECT_LT(what.size(), 400u);
      EXPECT_EQ(what.find_first_of("\n\x1b"), std::string_view::npos) << what;
    }
  }
}

TEST(JsonTest, ADuplicateKeyKeepsItsLastValueAndItsFirstPlace) {
  EXPECT_EQ(dump_json(parse_json(R"({"a":1,"b":2,"a":3})", "x")), R"({"a":3,"b":2})");
}

// A vocabulary: a search through all keys for each would take over a minute.
TEST(JsonTest, ManyKeysTakeLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += fmt::format("{}\"token{}\":{}", i == 0 ? "" : ",", i, i);
  const Json json = parse_json(text + "}", "x");
  ASSERT_EQ(json.size(), 200'000u);
  EXPECT_EQ(json["token123456"], 123456);
  EXPECT_EQ(json.items().begin().key(), "token0");
}

TEST(JsonTest, DumpReplacesBrokenUtf8) { EXPECT_EQ(dump_json(Json("a\xff")), "\"a\xEF\xBF\xBD\""); }

}  // namespace
}  // namespace qiao
