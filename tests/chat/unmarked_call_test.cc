// Answers that begin with a call's JSON object without the form's markers, as Qwen2.5-Coder writes them.
#include "chat/unmarked_call.h"

#include <gtest/gtest.h>

#include "chat_support.h"

namespace qiao::chat {
namespace {

using testing::format_of;
using testing::ParsedAnswer;

// In one piece, cut at each byte, and byte by byte: the same.
ParsedAnswer parse_every_way(const ChatFormat& format, std::string_view text) {
  const Json tools = testing::test_tools();
  const Thoughts thoughts = format.think_begin.empty() ? Thoughts::kNone : Thoughts::kMaybe;
  const auto parse = [&](const std::vector<std::string_view>& pieces) {
    return testing::parse_pieces(format, pieces, tools, thoughts);
  };
  ParsedAnswer whole = parse({text});
  std::vector<std::string_view> bytes;
  for (size_t i = 0; i < text.size(); ++i) {
    EXPECT_EQ(parse({text.substr(0, i), text.substr(i)}), whole) << text << " cut at " << i;
    bytes.push_back(text.substr(i, 1));
  }
  EXPECT_EQ(parse(bytes), whole) << text;
  return whole;
}

TEST(UnmarkedCallTest, AFencedOrBareObjectIsACall) {
  const std::vector<std::pair<std::string, std::string>> now = {{"now", "{}"}};
  for (const char* name : {"hermes", "plain"}) {  // of `plain` the model has been told Hermes' form
    for (const char* text : {
             "```json\n{\"name\": \"now\", \"arguments\": {}}\n```",
             "```json\n{\n  \"name\": \"now\",\n  \"arguments\": {}\n}\n```\n",
             "```\n{\"name\":\"now\",\"arguments\":{}}```", "\n{\"arguments\": {}, \"name\": \"now\"}\n",
             "{\"name\": \"now\", \"arguments\": {}}",
             "```json\n{\"name\": \"now\", \"arguments\": {}}",  // the fence was not closed
         }) {
      SCOPED_TRACE(text);
      const ParsedAnswer answer = parse_every_way(format_of(name), text);
      EXPECT_EQ(answer.calls, now);
      EXPECT_EQ(answer.text, "");
    }
  }
  const ParsedAnswer answer = parse_every_way(format_of("hermes"),
                                              "```json\n{\"name\": \"get_weather\", \"arguments\": "
                                              "{\"city\": \"a}`\\\"\", \"days\" : 1e0}}\n```\n\nSo.");
  ASSERT_EQ(answer.calls.size(), 1u);
  EXPECT_EQ(answer.calls[0].second, R"({"city": "a}`\"", "days" : 1e0})");
  EXPECT_EQ(answer.text, "So.");
}

TEST(UnmarkedCallTest, SeveralFollowEachOtherWhereTheyMay) {
  ChatFormat format = format_of("hermes");
  const std::string one = "```json\n{\"name\": \"now\", \"arguments\": {}}\n```";
  EXPECT_EQ(parse_every_way(format, one + "\n" + one).calls.size(), 2u);
  const ParsedAnswer mixed =
      parse_every_way(format, one + "\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>");
  EXPECT_EQ(mixed.calls.size(), 2u);
  EXPECT_EQ(mixed.text, "");
  format.several_calls = false;
  const ParsedAnswer single = parse_every_way(format, one + "\n" + one);
  EXPECT_EQ(single.calls.size(), 1u);
  EXPECT_EQ(single.text, one);
}

TEST(UnmarkedCallTest, ThoughtsMayComeFirst) {
  const ParsedAnswer answer = parse_every_way(
      format_of("hermes"), "<think>\nHm.\n</think>\n\n```json\n{\"name\": \"now\", \"arguments\": {}}\n```");
  EXPECT_EQ(answer.reasoning, "Hm.");
  EXPECT_EQ(answer.calls.size(), 1u);
}

TEST(UnmarkedCallTest, WhatIsNotExactlyACallIsText) {
  for (const char* text : {
           "```json\n{\"name\": \"unknown\", \"arguments\": {}}\n```",
           "```json\n{\"name\": \"now\"}\n```",
           "```json\n{\"name\": \"now\", \"arguments\": {}, \"id\": 1}\n```",
           "```json\n{\"name\": \"now\", \"arguments\": []}\n```",
           "```json\n{\"name\": \"now\", \"arguments\": {\"zone\": 1}}\n```",          // not of its schema
           "```json\n{\"name\": \"get_weather\", \"arguments\": {\"days\": 1}}\n```",  // city is required
           "```json\n[{\"name\": \"now\", \"arguments\": {}}]\n```",
           "```python\nprint()\n```",
           "```json\n{\"name\": \"now\", \"arguments\": {}} or so\n```",
           "```json\n{\"name\": \"now\", \"arguments\": {}}\n``` is how it is called",
           "```json\n{\"name\": \"now\", \"arguments\": {",
           "```json\n{\"name\": \"now\", \"arguments\": {\"a\": tru}}\n```",
           "{\"name\": \"now\", \"arguments\": {}} is how it is called",
           "{\"name\": \"now\", \"arguments\": {}}}",
           "{\"now\": {}}",
           "{",
           "```",
           "``",
           "say ```json\n{\"name\": \"now\", \"arguments\": {}}\n```",
       }) {
    SCOPED_TRACE(text);
    const ParsedAnswer answer = parse_every_way(format_of("hermes"), text);
    EXPECT_EQ(answer.text, text);
    EXPECT_TRUE(answer.calls.empty());
  }
}

TEST(UnmarkedCallTest, OtherFormsAndThoseWhoDoNotWantItHaveNone) {
  const std::string text = "```json\n{\"name\": \"now\", \"arguments\": {}}\n```";
  for (const char* name : {"qwen_coder", "mistral_args", "deepseek_v3", "glm", "gemma4"}) {
    SCOPED_TRACE(name);
    EXPECT_EQ(parse_every_way(format_of(name), text).text, text);
  }
  ChatFormat format = format_of("hermes");
  format.unmarked_calls = false;
  EXPECT_EQ(parse_every_way(format, text).text, text);
}

// Text comes as it is written from where it can be no call any more.
TEST(UnmarkedCallTest, HoldsBackOnlyWhatMayBecomeOne) {
  for (const char* text :
       {"{\"na\"", "{\"name\": \"not", "```jsonc", "```py", "``x", "Hello", "{\"name\": {"}) {
    SCOPED_TRACE(text);
    ChatParser parser(format_of("hermes"), testing::test_tools(), Thoughts::kNone);
    std::vector<ChatEvent> events;
    parser.push(text, events);
    EXPECT_EQ(testing::put_together(events).text, text);
  }
  for (const char* text :
       {"{\"na", "{\"name\": \"no", "```json", "```", "\n{", "{\"name\": \"now\", \"arguments\": {}}"}) {
    SCOPED_TRACE(text);
    ChatParser parser(format_of("hermes"), testing::test_tools(), Thoughts::kNone);
    std::vector<ChatEvent> events;
    parser.push(text, events);
    EXPECT_TRUE(events.empty());
  }
}

}  // namespace
}  // namespace qiao::chat
