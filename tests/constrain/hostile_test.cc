// Constraints made to hurt: each is refused with one clear line, or handled, at once: some 10 ms, and ten
// times the promised 100 ms even on a machine that does other things.
#include <gtest/gtest.h>

#include <ctime>

#include "constrain_support.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

using constrain::compile_grammar;
using constrain::compile_regex;

// Sanitizers slow everything down; the promise is about a release build.
class HostileConstraintTest : public ::testing::Test {
 protected:
  void TearDown() override {
    const double taken = 1000.0 * static_cast<double>(std::clock() - begin_) / CLOCKS_PER_SEC;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    EXPECT_LT(taken, 1000 * parts_);
#else
    (void)taken;
#endif
  }
  int parts_ = 1;

 private:
  std::clock_t begin_ = std::clock();  // of this process: the machine may be busy
};

TEST_F(HostileConstraintTest, ExponentialRepetition) {
  parts_ = 3;
  EXPECT_QIAO_ERROR(compile_regex("(a{1000}){1000}", "regex"), kTooLarge, "repeat");
  EXPECT_QIAO_ERROR(compile_regex("((((a{99}){99}){99}){99}){99}", "regex"), kTooLarge, "repeat");
  EXPECT_QIAO_ERROR(compile_regex("a{99999999999999999999}", "regex"), kTooLarge, "repetition");
}

TEST_F(HostileConstraintTest, AMegabyteOfExpression) {
  EXPECT_QIAO_ERROR(compile_regex(std::string(1 << 20, 'a'), "regex"), kTooLarge, "1048576");
}

TEST_F(HostileConstraintTest, GroupsWithoutEnd) {
  EXPECT_QIAO_ERROR(compile_regex(std::string(10'000, '('), "regex"), kTooLarge, "nested");
  EXPECT_QIAO_ERROR(compile_grammar("root ::= " + std::string(10'000, '('), "grammar"), kTooLarge, "nested");
}

TEST_F(HostileConstraintTest, SubsetsThatDouble) {
  // 2^20 states if they were all made: only those that the text visits are.
  const auto grammar = compile_regex("(a|b)*a(a|b){20}", "regex");
  EXPECT_TRUE(testing::accepts(grammar, "bbabababababababababababa" + std::string(20, 'a')));
}

TEST_F(HostileConstraintTest, TenThousandLevels) {
  std::string deep;
  for (int i = 0; i < 10'000; ++i) deep += R"({"items":)";
  deep += "{}" + std::string(10'000, '}');
  EXPECT_QIAO_ERROR(testing::schema_of(deep), kInvalidInput, "nested deeper");
}

TEST_F(HostileConstraintTest, AChainAndACycleOfReferences) {
  parts_ = 2;
  std::string chain = R"({"$defs":{)";
  for (int i = 0; i < 5000; ++i) chain += fmt::format(R"("d{}":{{"$ref":"#/$defs/d{}"}},)", i, i + 1);
  chain += R"("d5000":{}},"$ref":"#/$defs/d0"})";
  EXPECT_QIAO_ERROR(testing::schema_of(chain), kTooLarge, "deeper");
  EXPECT_QIAO_ERROR(
      testing::schema_of(
          R"({"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/b"}]},"b":{"not":{"$ref":"#/$defs/a"}}},"$ref":"#/$defs/a"})"),
      kInvalidInput, "cycle");
}

// Each level names the next one twice.
TEST_F(HostileConstraintTest, DoublingReferences) {
  for (const char* level :
       {R"({{"allOf":[{{"$ref":"#/$defs/d{0}"}},{{"$ref":"#/$defs/d{0}"}}]}})",
        R"({{"anyOf":[{{"$ref":"#/$defs/d{0}"}},{{"$ref":"#/$defs/d{0}"}}]}})",
        R"({{"not":{{"anyOf":[{{"$ref":"#/$defs/d{0}"}},{{"$ref":"#/$defs/d{0}"}}]}}}})"}) {
    SCOPED_TRACE(level);
    std::string schema = R"({"$defs":{)";
    for (int i = 0; i < 40; ++i)
      schema += fmt::format("\"d{}\":", i) + fmt::format(fmt::runtime(level), i + 1) + ",";
    schema += R"("d40":{"type":"integer","minimum":3}},"$ref":"#/$defs/d0"})";
    const auto grammar = testing::schema_of(schema);
    EXPECT_TRUE(testing::accepts(grammar, "3"));
    EXPECT_FALSE(testing::accepts(grammar, "2"));
  }
}

TEST_F(HostileConstraintTest, ManyBranchesThatOverlap) {
  const auto one_of = [](int count) {
    std::string schema = R"({"oneOf":[{})";
    for (int i = 0; i < count; ++i) schema += fmt::format(R"(,{{"required":["a{}"]}})", i);
    return schema + "]}";
  };
  EXPECT_QIAO_ERROR(testing::schema_of(one_of(2000)), kTooLarge, "oneOf", "2001 branches");
  EXPECT_QIAO_ERROR(testing::schema_of(one_of(400)), kTooLarge, "oneOf", "pairs of branches");
}

TEST_F(HostileConstraintTest, ManyNamesOfCategories) {
  std::string pattern;
  for (int i = 0; i < 12'000; ++i) pattern += "\\p{L}";
  const auto grammar = compile_regex(pattern, "regex");
  constrain::ConstraintState state(grammar);
  EXPECT_EQ(state.accept_bytes("ab1"), 2u);
}

TEST_F(HostileConstraintTest, AProductOfAlternatives) {
  std::string schema = R"({"allOf":[)";
  for (int i = 0; i < 12; ++i) {
    schema += i == 0 ? "" : ",";
    schema += fmt::format(
        R"({{"anyOf":[{{"required":["a{0}"]}},{{"required":["b{0}"]}},{{"required":["c{0}"]}},{{"required":["d{0}"]}}]}})",
        i);
  }
  EXPECT_QIAO_ERROR(testing::schema_of(schema + "]}"), kTooLarge, "alternatives");
}

TEST_F(HostileConstraintTest, AHugeEnum) {
  std::string schema = R"({"enum":[)";
  for (int i = 0; i < 10'000; ++i) schema += fmt::format(R"("value number {}",)", i);
  const auto grammar = testing::schema_of(schema + R"("last"]})");
  EXPECT_TRUE(testing::accepts(grammar, R"("value number 9999")"));
  EXPECT_EQ(testing::judge(grammar, R"("value number x")"), "rejected at byte 14");
}

TEST_F(HostileConstraintTest, MoreValuesThanASchemaMayHave) {
  std::string schema = R"({"anyOf":[{"enum":[)";
  for (int i = 0; i < 100'000; ++i) schema += fmt::format("{},", i);
  EXPECT_QIAO_ERROR(testing::schema_of(schema + "0]}]}"), kTooLarge, "values");
}

TEST_F(HostileConstraintTest, ThousandsOfNames) {
  parts_ = 4;
  const auto object_of = [](int names, const char* value) {
    std::string schema = R"({"type":"object","properties":{)", required = "\"required\":[";
    for (int i = 0; i < names; ++i) {
      schema += fmt::format(R"({}"property {}":{})", i == 0 ? "" : ",", i, value);
      required += fmt::format(R"({}"property {}")", i == 0 ? "" : ",", i);
    }
    return schema + "}," + required + "]}";
  };
  const auto grammar = testing::schema_of(object_of(2000, "true"));
  constrain::ConstraintState state(grammar);
  EXPECT_EQ(state.accept_bytes(R"({"property 1999":1,"property 0)"), 30u);
  EXPECT_QIAO_ERROR(testing::schema_of(object_of(20'000, "true")), kTooLarge, "properties");
  // Two lists of names that are held against each other.
  const std::string half = object_of(15'000, "{}");
  EXPECT_QIAO_ERROR(testing::schema_of(R"({"allOf":[)" + half + "," + half + "]}"), kTooLarge, "properties");
}

TEST_F(HostileConstraintTest, ALongChainOfNeededValues) {
  std::string chain = R"({"$defs":{)";
  for (int i = 0; i < 5000; ++i) {
    chain += fmt::format(
        R"("d{}":{{"type":"object","properties":{{"a":{{"$ref":"#/$defs/d{}"}}}},"required":["a"]}},)", i,
        i + 1);
  }
  EXPECT_TRUE(
      testing::accepts(testing::schema_of(chain + R"("d5000":{}},"$ref":"#/$defs/d4999"})"), R"({"a":1})"));
  EXPECT_EQ(testing::judge(testing::schema_of(chain + R"("d5000":{}},"$ref":"#/$defs/d0"})"), R"({"b":1})"),
            "rejected at byte 6");
}

TEST_F(HostileConstraintTest, ManyPatterns) {
  parts_ = 2;
  std::string schema = R"({"properties":{)";
  for (int i = 0; i < 2000; ++i)
    schema +=
        fmt::format(R"("p{}":{{"type":"string","pattern":"(x|y{})*a.{{12}}b","maxLength":900}},)", i, i);
  EXPECT_QIAO_ERROR(testing::schema_of(schema + R"("last":true}})"), kTooLarge, "schema");
}

TEST_F(HostileConstraintTest, HugeCounts) {
  const auto grammar = testing::schema_of(
      R"({"type":"array","minItems":900000000,"maxItems":1000000000,"items":{"type":"string","minLength":800000000}})");
  EXPECT_EQ(testing::judge(grammar, R"(["ab"])"), "rejected at byte 4");
  EXPECT_EQ(testing::judge(testing::schema_of(R"({"type":"array","minItems":1e30})"), "[]"),
            "rejected at byte 1");
  EXPECT_QIAO_ERROR(compile_regex(".{99999}.{99999}.{99999}", "regex"), kTooLarge, "repeat");
}

TEST_F(HostileConstraintTest, ManyOptionalCharacters) {
  std::string pattern;
  for (int i = 0; i < 20'000; ++i) pattern += "a?";
  EXPECT_QIAO_ERROR(compile_regex(pattern + std::string(20'000, 'a'), "regex"), kTooLarge, "regex",
                    "simplify");
}

TEST_F(HostileConstraintTest, NestedTexts) {
  const auto grammar = constrain::compile_json_object();
  constrain::ConstraintState state(grammar);
  const std::string deep = R"({"a":)" + std::string(100'000, '[');
  EXPECT_QIAO_ERROR(state.accept_bytes(deep), kTooLarge, "nested deeper");
  EXPECT_EQ(state.accept_bytes("{}"), 2u);  // unchanged by the error
}

}  // namespace
}  // namespace qiao
