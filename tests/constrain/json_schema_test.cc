// Verdicts as JSON Schema defines them; tests/constrain/schema_differential.py compares thousands more with
// the jsonschema wheel.
#include <gtest/gtest.h>

#include "constrain_support.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

using testing::accepts;
using testing::judge;
using testing::schema_of;

TEST(JsonSchemaTest, TakesPropertiesInAnyOrderAndAnyWhitespace) {
  const auto grammar = schema_of(
      R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},
          "required":["name"],"additionalProperties":false})");
  EXPECT_TRUE(accepts(grammar, R"({"name":"Ada","age":36})"));
  EXPECT_TRUE(accepts(grammar, " {\n\t\"age\" : 36 ,\"name\": \"Ada\" }\r\n"));
  EXPECT_TRUE(accepts(grammar, R"({"name":""})"));
  EXPECT_EQ(judge(grammar, R"({"age":36})"), "rejected at byte 9");
  EXPECT_EQ(judge(grammar, R"({"name":"x","name":"y"})"), "rejected at byte 13");
  EXPECT_EQ(judge(grammar, R"({"name":"x","other":1})"), "rejected at byte 13");
  EXPECT_EQ(judge(grammar, R"({"name":1})"), "rejected at byte 8");
  EXPECT_EQ(judge(grammar, R"({"name":"x")"), "rejected at byte 11");
  EXPECT_EQ(judge(grammar, ""), "rejected at byte 0");
}

TEST(JsonSchemaTest, EscapesAreTheCharactersThatTheyStandFor) {
  const auto grammar = schema_of(R"({"properties":{"a":{"enum":["é","\n"]}},"additionalProperties":false})");
  EXPECT_TRUE(accepts(grammar, "{\"a\":\"\u00e9\"}"));
  EXPECT_TRUE(accepts(grammar, R"({"\u0061":"\u00E9"})"));
  EXPECT_TRUE(accepts(grammar, R"({"a":"\n"})"));
  EXPECT_TRUE(accepts(grammar, R"({"a":"\u000a"})"));
  EXPECT_FALSE(accepts(grammar, R"({"\u0062":"\n"})"));
  EXPECT_FALSE(accepts(grammar, "{\"a\":\"\n\"}"));  // a control must be escaped
  const auto length = schema_of(R"({"type":"string","minLength":2,"maxLength":2})");
  EXPECT_TRUE(accepts(length, R"("\u0061\ud83d\ude42")"));
  EXPECT_TRUE(accepts(length, "\"a\U0001F642\""));
  EXPECT_FALSE(accepts(length, R"("\u0061")"));
  EXPECT_FALSE(accepts(length, "\"abc\""));
  EXPECT_FALSE(accepts(length, R"("\ud83d")"));        // half a pair
  EXPECT_FALSE(accepts(length, "\"a\xED\xA0\x80\""));  // a surrogate in UTF-8
  EXPECT_FALSE(accepts(length, "\"a\xC0\x80\""));      // overlong
}

TEST(JsonSchemaTest, Numbers) {
  const auto range = schema_of(R"({"type":"number","minimum":-1.5,"exclusiveMaximum":120})");
  for (const char* good : {"-1.5", "-1.50", "0", "-0", "119.999", "7", "3.25"})
    EXPECT_TRUE(accepts(range, good)) << good;
  for (const char* bad : {"-1.51", "120", "120.0", "1200", "-2", "01", ".5", "1.", "+1"}) {
    EXPECT_FALSE(accepts(range, bad)) << bad;
  }
  const auto integer = schema_of(R"({"type":"integer"})");
  for (const char* good : {"0", "-12", "3.0", "3e2", "12E+1"}) EXPECT_TRUE(accepts(integer, good)) << good;
  for (const char* bad : {"1.5", "3e-2", "\"1\""}) EXPECT_FALSE(accepts(integer, bad)) << bad;
  const auto multiple = schema_of(R"({"type":"integer","multipleOf":12,"minimum":30,"maximum":60})");
  for (const char* good : {"36", "48", "60", "36.0"}) EXPECT_TRUE(accepts(multiple, good)) << good;
  for (const char* bad : {"24", "37", "72", "40"}) EXPECT_FALSE(accepts(multiple, bad)) << bad;
  const auto cents = schema_of(R"({"multipleOf":0.25})");
  for (const char* good : {"0.5", "1", "-2.75", "1.250"}) EXPECT_TRUE(accepts(cents, good)) << good;
  for (const char* bad : {"0.3", "1.26", "1.125"}) EXPECT_FALSE(accepts(cents, bad)) << bad;
  EXPECT_EQ(judge(schema_of(R"({"type":"integer","maximum":9,"minimum":0})"), "10"), "rejected at byte 1");
}

TEST(JsonSchemaTest, ArraysAndTuples) {
  const auto grammar = schema_of(
      R"({"type":"array","prefixItems":[{"type":"string"},{"type":"number"}],"items":{"type":"boolean"},"minItems":1,"maxItems":3})");
  for (const char* good : {R"(["a"])", R"(["a",1])", R"([ "a" , 1 , true ])"})
    EXPECT_TRUE(accepts(grammar, good)) << good;
  for (const char* bad : {"[]", "[1]", R"(["a",1,2])", R"(["a",1,true,true])", R"(["a",])"}) {
    EXPECT_FALSE(accepts(grammar, bad)) << bad;
  }
  const auto contains = schema_of(R"({"type":"array","contains":{"const":7},"maxItems":2})");
  for (const char* good : {"[7]", "[1,7]", "[7,\"x\"]"}) EXPECT_TRUE(accepts(contains, good)) << good;
  EXPECT_FALSE(accepts(contains, "[]"));
  EXPECT_EQ(judge(contains, "[1,8]"), "rejected at byte 3");
}

TEST(JsonSchemaTest, CombinesSchemas) {
  const auto merged = schema_of(
      R"({"allOf":[{"properties":{"a":{"type":"string"}},"required":["a"]},{"properties":{"a":{"maxLength":2}}}]})");
  EXPECT_TRUE(accepts(merged, R"({"a":"xy","z":[1,{"q":null}]})"));
  EXPECT_FALSE(accepts(merged, R"({"a":"xyz"})"));
  EXPECT_FALSE(accepts(merged, "{}"));
  EXPECT_TRUE(accepts(merged, "{\"a\":\"\\n\\t\"}"));
  const auto one = schema_of(R"({"oneOf":[{"type":"number","multipleOf":1},{"type":"number","minimum":2}]})");
  for (const char* good : {"1", "2.5", "-3"}) EXPECT_TRUE(accepts(one, good)) << good;
  for (const char* bad : {"2", "3", "1.5", "\"x\""}) EXPECT_FALSE(accepts(one, bad)) << bad;
  const auto no = schema_of(R"({"not":{"type":["string","null"]}})");
  EXPECT_TRUE(accepts(no, "[null]"));
  EXPECT_FALSE(accepts(no, "null"));
  const auto condition = schema_of(
      R"({"type":"object","properties":{"kind":{"enum":["a","b"]}},"required":["kind"],
          "if":{"properties":{"kind":{"const":"a"}}},"then":{"required":["x"]},"else":{"required":["y"]}})");
  EXPECT_TRUE(accepts(condition, R"({"x":1,"kind":"a"})"));
  EXPECT_TRUE(accepts(condition, R"({"kind":"b","y":1})"));
  EXPECT_FALSE(accepts(condition, R"({"kind":"b","x":1})"));
}

TEST(JsonSchemaTest, Unevaluated) {
  const auto merged = schema_of(
      R"({"allOf":[{"properties":{"a":{"type":"string"}}}],"properties":{"b":true},"patternProperties":{"^x":true},
          "anyOf":[{"properties":{"c":{"const":1}},"required":["c"]},{"properties":{"d":{"const":2}},"required":["d"]},true],
          "unevaluatedProperties":false})");
  for (const char* good : {"{}", R"({"a":"s","b":1,"x9":[]})", R"({"c":1,"d":2})", R"({"d":2,"b":0})"})
    EXPECT_TRUE(accepts(merged, good)) << good;
  for (const char* bad : {R"({"e":1})", R"({"c":2})", R"({"a":1})", R"({"d":2,"c":2})"})
    EXPECT_FALSE(accepts(merged, bad)) << bad;
  const auto chosen = schema_of(
      R"({"if":{"properties":{"k":{"const":"a"}},"required":["k"]},"then":{"properties":{"v":true}},
          "else":{"properties":{"w":true}},"unevaluatedProperties":{"type":"integer"}})");
  for (const char* good : {R"({"k":"a","v":"s"})", R"({"w":"s"})", R"({"k":7,"w":null,"v":3})"})
    EXPECT_TRUE(accepts(chosen, good)) << good;
  for (const char* bad : {R"({"k":"a","w":"s"})", R"({"v":"s"})", R"({"k":"b"})"})
    EXPECT_FALSE(accepts(chosen, bad)) << bad;
  const auto items = schema_of(
      R"({"prefixItems":[true],"anyOf":[{"prefixItems":[true,{"type":"string"}]},true],"unevaluatedItems":{"type":"null"}})");
  for (const char* good : {"[]", "[1]", R"([1,"s"])", "[1,null,null]", R"([1,"s",null])"})
    EXPECT_TRUE(accepts(items, good)) << good;
  for (const char* bad : {"[1,2]", R"([1,"s","s"])"}) EXPECT_FALSE(accepts(items, bad)) << bad;
}

TEST(JsonSchemaTest, UniqueItemsOfAList) {
  const auto grammar =
      schema_of(R"({"type":"array","uniqueItems":true,"minItems":2,"items":{"enum":["a","b",1,null,true]}})");
  for (const char* good : {R"(["a","b"])", R"([1,true,null,"a","b"])"})
    EXPECT_TRUE(accepts(grammar, good)) << good;
  for (const char* bad : {R"(["a"])", R"(["a","a"])", "[1,1.0]", R"([1,true,null,"a","b","a"])"})
    EXPECT_FALSE(accepts(grammar, bad)) << bad;
  EXPECT_QIAO_ERROR(
      schema_of(R"({"type":"array","uniqueItems":true,"minItems":3,"items":{"type":"boolean"}})"),
      kInvalidInput, "no JSON value");
}

TEST(JsonSchemaTest, DialectsDiffer) {
  const auto old = schema_of(
      R"({"$schema":"http://json-schema.org/draft-04/schema#","properties":{"a":{"$ref":"#/definitions/n","maximum":1},
          "b":{"type":"integer"}},"definitions":{"n":{"type":"number"}}})");
  EXPECT_TRUE(accepts(old, R"({"a":2,"b":3})"));  // what stands beside $ref does not count
  EXPECT_FALSE(accepts(old, R"({"b":3.0})"));     // no integer before draft 6
  const auto now = schema_of(R"({"properties":{"a":{"$ref":"#/$defs/n","maximum":1},"b":{"type":"integer"}},
                                 "$defs":{"n":{"type":"number"}}})");
  EXPECT_FALSE(accepts(now, R"({"a":2})"));
  EXPECT_TRUE(accepts(now, R"({"b":3.0})"));
  const auto tree = schema_of(
      R"({"$dynamicAnchor":"node","type":"object","properties":{"kids":{"items":{"$dynamicRef":"#node"}}},
          "additionalProperties":false})");
  EXPECT_TRUE(accepts(tree, R"({"kids":[{"kids":[]},{}]})"));
  EXPECT_FALSE(accepts(tree, R"({"kids":[{"kid":[]}]})"));
}

TEST(JsonSchemaTest, Formats) {
  const struct {
    const char* format;
    std::vector<std::string> good, bad;
  } cases[] = {
      {"uri",
       {"https://a.example/b?c=d#e", "mailto:x@example.org", "urn:a:b"},
       {"/a", "a b:c", "http://a b"}},
      {"uri-reference", {"/a/b", "b?c", "#f", "//host/x", "http://a.example", ""}, {"\\\\a", "a:b c", "1:x"}},
      {"iri", {"http://\u00e9.example/\u00fc"}, {"/\u00e9"}},
      {"iri-reference", {"\u00e9?\u00fc", "/x"}, {"a b"}},
      {"uri-template", {"/a/{id}{?q,r*}", "{+path:3}"}, {"/a/{id", "/a}"}},
      {"json-pointer", {"", "/a~1b/~0", "/"}, {"a", "/~2", "/~"}},
      {"relative-json-pointer", {"0", "1/a", "2#"}, {"/a", "01", "-1/a"}},
      {"idn-email",
       {"실례@실례.테스트", "joe.bloggs@example.com", "é.ü@a"},
       {"2962", "a@", "@b", "é..ü@a", "a b@c"}},
      {"uuid4",
       {"4f9b3c1e-0b5a-4f64-9d58-2f1e9a3c7b10"},
       {"4f9b3c1e-0b5a-1f64-9d58-2f1e9a3c7b10", "4f9b3c1e-0b5a-4f64-7d58-2f1e9a3c7b10",
        "4f9b3c1e0b5a4f649d582f1e9a3c7b10"}},
      {"byte", {"", "YQ==", "YWI=", "YWJj", "+/+/"}, {"YQ=", "YQ", "Y===", "YW-_", "YQ==YQ=="}},  // RFC 4648
      {"password", {"", "any \u4f60"}, {}},
      {"int32", {"a text, of which it says nothing"}, {}},
  };
  for (const auto& [format, good, bad] : cases) {
    const auto grammar = schema_of(fmt::format(R"({{"type":"string","format":"{}"}})", format));
    for (const std::string& text : good)
      EXPECT_TRUE(accepts(grammar, '"' + text + '"')) << format << " " << text;
    for (const std::string& text : bad)
      EXPECT_FALSE(accepts(grammar, '"' + text + '"')) << format << " " << text;
  }
}

TEST(JsonSchemaTest, FormatsOfNumbers) {
  const struct {
    const char* format;
    std::vector<const char*> good, bad;
  } cases[] = {
      {"int8", {"-128", "0", "127", "1.0"}, {"-129", "128", "1.5"}},
      {"int32", {"-2147483648", "2147483647"}, {"-2147483649", "2147483648", "0.1"}},
      {"int64",
       {"-9223372036854775808", "9223372036854775807"},
       {"-9223372036854775809", "9223372036854775808"}},
      {"uint8", {"0", "255"}, {"-1", "256"}},
      {"uint64", {"0", "18446744073709551615"}, {"-1", "18446744073709551616"}},
      {"double", {"-1.5e300", "0", "3"}, {"\"3\""}},
  };
  for (const auto& [format, good, bad] : cases) {
    const auto grammar = schema_of(fmt::format(R"({{"type":"number","format":"{}"}})", format));
    for (const char* text : good) EXPECT_TRUE(accepts(grammar, text)) << format << " " << text;
    for (const char* text : bad) EXPECT_FALSE(accepts(grammar, text)) << format << " " << text;
  }
  EXPECT_TRUE(accepts(schema_of(R"({"type":"integer","format":"int32","minimum":7})"), "7"));
  EXPECT_FALSE(accepts(schema_of(R"({"type":"integer","format":"int32","minimum":7})"), "6"));
  EXPECT_TRUE(accepts(schema_of(R"({"not":{"format":"uint8"}})"), "256"));
  EXPECT_FALSE(accepts(schema_of(R"({"not":{"format":"uint8"}})"), "255"));
}

TEST(JsonSchemaTest, Recursion) {
  const auto tree = schema_of(
      R"({"$defs":{"node":{"type":"object","properties":{"v":{"type":"integer"},"kids":{"type":"array","items":{"$ref":"#/$defs/node"}}},
          "required":["v"],"additionalProperties":false}},"$ref":"#/$defs/node"})");
  EXPECT_TRUE(accepts(tree, R"({"v":1,"kids":[{"kids":[],"v":2},{"v":3}]})"));
  EXPECT_FALSE(accepts(tree, R"({"v":1,"kids":[{"kids":[]}]})"));
}

TEST(JsonSchemaTest, PatternsOfKeysAndStrings) {
  const auto keys = schema_of(
      R"({"patternProperties":{"^x-":{"type":"string"},"y$":{"maxLength":1}},"additionalProperties":{"type":"integer"}})");
  EXPECT_TRUE(accepts(keys, R"({"x-a":"long","n":3})"));
  EXPECT_TRUE(accepts(keys, R"({"x-y":"s","y":[]})"));
  EXPECT_FALSE(accepts(keys, R"({"x-y":"ss"})"));
  EXPECT_FALSE(accepts(keys, R"({"x-a":1})"));
  EXPECT_FALSE(accepts(keys, R"({"n":"s"})"));
  const auto names = schema_of(R"({"propertyNames":{"pattern":"^[a-z]+$","maxLength":3}})");
  EXPECT_TRUE(accepts(names, R"({"abc":1})"));
  EXPECT_FALSE(accepts(names, R"({"abcd":1})"));
  EXPECT_FALSE(accepts(names, R"({"A":1})"));
  const auto found = schema_of(R"({"type":"string","pattern":"b+c","maxLength":4})");
  EXPECT_TRUE(accepts(found, "\"abcd\""));
  EXPECT_EQ(judge(found, "\"aaab"), "rejected at byte 3");  // no room for bc any more
  const auto date = schema_of(R"({"type":"string","format":"date"})");
  EXPECT_TRUE(accepts(date, "\"2024-02-29\""));
  EXPECT_FALSE(accepts(date, "\"2023-02-29\""));
}

TEST(JsonSchemaTest, NamesWhatItCannotHoldTo) {
  EXPECT_QIAO_ERROR(schema_of(R"({"properties":{"a":{"uniqueItems":true}}})"), kUnsupported, "uniqueItems",
                    "#/properties/a");
  EXPECT_QIAO_ERROR(schema_of(R"({"not":{"unevaluatedProperties":false}})"), kUnsupported,
                    "unevaluatedProperties");
  EXPECT_QIAO_ERROR(schema_of(R"({"contains":{"type":"null"},"unevaluatedItems":false})"), kUnsupported,
                    "unevaluatedItems");
  EXPECT_QIAO_ERROR(schema_of(R"({"$schema":"https://example.org/dialect"})"), kUnsupported, "$schema",
                    "dialect");
  EXPECT_QIAO_ERROR(schema_of(R"({"multipleOf":1e-20})"), kUnsupported, "\"multipleOf\"");
  EXPECT_QIAO_ERROR(
      schema_of(R"({"$defs":{"a":{"$dynamicAnchor":"n"},"b":{"$dynamicAnchor":"n"}},"$dynamicRef":"#n"})"),
      kUnsupported, "$dynamicRef");
  EXPECT_QIAO_ERROR(schema_of(R"({"minlength":3})"), kUnsupported, "minlength", "minLength");
  EXPECT_QIAO_ERROR(schema_of(R"({"$ref":"https://example.org/x.json"})"), kUnsupported, "$ref");
  EXPECT_QIAO_ERROR(schema_of(R"({"format":"regex"})"), kUnsupported, "format", "regex");
  EXPECT_QIAO_ERROR(schema_of(R"({"minProperties":2})"), kUnsupported, "minProperties");
  EXPECT_QIAO_ERROR(schema_of(R"({"type":"strin"})"), kInvalidInput, "type");
  EXPECT_QIAO_ERROR(schema_of(R"~({"pattern":"(?=a)"})~"), kUnsupported, "look-ahead");
  EXPECT_QIAO_ERROR(schema_of(R"({"$ref":"#"})"), kInvalidInput, "cycle");
  EXPECT_QIAO_ERROR(schema_of(R"({"allOf":[{"type":"string"},{"type":"number"}]})"), kInvalidInput,
                    "no JSON value");
  EXPECT_QIAO_ERROR(schema_of(R"({"properties":{"next":{"$ref":"#"}},"required":["next"],"type":"object"})"),
                    kInvalidInput, "no JSON value");
}

TEST(JsonSchemaTest, GenerationStyleForcesWhatItCan) {
  const auto grammar =
      schema_of(R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},
                                     "required":["name","age"],"additionalProperties":false})",
                constrain::JsonStyle::generation());
  constrain::ConstraintState state(grammar);
  EXPECT_EQ(state.forced_bytes(), R"({"name": ")");
  EXPECT_EQ(state.accept_bytes(R"({"name": "Ada")"), 14u);
  EXPECT_EQ(state.forced_bytes(), R"(, "age": )");
  EXPECT_EQ(state.accept_bytes(R"(, "age": 3)"), 10u);
  EXPECT_EQ(state.forced_bytes(), "");
  EXPECT_EQ(state.accept_bytes("6}"), 2u);
  EXPECT_TRUE(state.can_end());
  EXPECT_TRUE(state.must_end());
}

}  // namespace
}  // namespace qiao
