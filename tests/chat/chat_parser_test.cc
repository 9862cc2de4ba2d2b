#include <gtest/gtest.h>

#include <random>

#include "chat_support.h"

namespace qiao::chat {
namespace {

using testing::format_of;
using testing::make_call;
using testing::parse_pieces;
using testing::parse_whole;
using testing::ParsedAnswer;

// Outputs of each form, good and bad.
std::vector<std::string> corpus(const std::string& name, const ChatFormat& format) {
  const auto empty = [&] { return format.null_content ? Json(nullptr) : Json(""); };
  std::vector<std::string> texts = {
      testing::rendered_answer(
          name, format,
          {{"content", empty()},
           {"tool_calls", Json::array({make_call("get_weather", testing::weather_arguments())})}}),
      testing::rendered_answer(
          name, format,
          {{"content", empty()}, {"tool_calls", Json::array({make_call("now", Json::object())})}}),
      "Just text, 你好 😀 <b> { [ ` and\n\n spaces  \n",
      "<think>\nI wonder.\n\n</think>\n\nYes.",
  };
  if (format.several_calls) {
    texts.push_back("Look:\n" +
                    write_calls(format.form, Json::array({make_call("get_weather", {{"city", "A"}}),
                                                          make_call("now", Json::object())})));
  }
  const std::string whole = texts[0];
  texts.push_back(whole.substr(0, whole.size() / 2));
  texts.push_back(whole.substr(0, whole.size() / 4));
  texts.push_back(std::string(format.form.marker()) + " of nothing");
  texts.push_back("a " + whole + " b");
  return texts;
}

TEST(ChatParserTest, ReadsWhatTemplatesWrite) {
  for (const std::string& name : testing::call_templates()) {
    SCOPED_TRACE(name);
    const ChatFormat format = format_of(name);
    const Json arguments = testing::weather_arguments();
    Json calls = Json::array({make_call("get_weather", arguments)});
    if (format.several_calls) calls.push_back(make_call("now", Json::object()));
    const std::string text = testing::rendered_answer(
        name, format, {{"content", format.null_content ? Json(nullptr) : Json("")}, {"tool_calls", calls}});
    const ParsedAnswer answer = parse_whole(format, text);
    ASSERT_EQ(answer.calls.size(), calls.size()) << text;
    EXPECT_EQ(answer.calls[0].first, "get_weather");
    EXPECT_EQ(parse_json(answer.calls[0].second, "arguments"), arguments) << answer.calls[0].second;
    if (calls.size() > 1) {
      EXPECT_EQ(answer.calls[1], (std::pair<std::string, std::string>("now", "{}")));
    }
    EXPECT_EQ(answer.text, "");
  }
}

// The property: wherever the text is cut as it arrives, the events are the same put together.
TEST(ChatParserTest, EverySplitGivesTheSame) {
  std::mt19937 random(7);
  for (const std::string& name : testing::call_templates()) {
    const ChatFormat format = format_of(name);
    for (const std::string& text : corpus(name, format)) {
      SCOPED_TRACE(name + ": " + text);
      const ParsedAnswer whole = parse_whole(format, text);
      const std::string_view view = text;
      for (size_t cut = 0; cut <= view.size(); ++cut)
        ASSERT_EQ(parse_pieces(format, {view.substr(0, cut), view.substr(cut)}), whole) << cut;
      std::vector<std::string_view> bytes;
      for (size_t i = 0; i < view.size(); ++i) bytes.push_back(view.substr(i, 1));
      ASSERT_EQ(parse_pieces(format, bytes), whole);
      for (int round = 0; round < 20; ++round) {
        std::vector<std::string_view> pieces;
        for (size_t at = 0; at < view.size();) {
          const size_t size = 1 + random() % 12;
          pieces.push_back(view.substr(at, size));
          at += size;
        }
        ASSERT_EQ(parse_pieces(format, pieces), whole);
      }
    }
  }
}

// The whitespace between a call's head and what should be its first parameter is of neither.
TEST(ChatParserTest, EverySplitOfACallWithoutParametersGivesTheSame) {
  const ChatFormat format = format_of("qwen_coder");
  for (const std::string_view text :
       {"<tool_call>\n<function=get_weather>\n<rameter=city>\nBerlin\n",
        "<tool_call>\n<function=now> \n\n said", "<tool_call>\n<function=now>\n",
        "<tool_call>\n<function=now>\n</function>\n</tool_call>"}) {
    SCOPED_TRACE(text);
    const ParsedAnswer whole = parse_whole(format, text);
    EXPECT_EQ(whole.calls.size(), 1u);
    EXPECT_FALSE(whole.text.starts_with('\n'));
    for (size_t cut = 0; cut <= text.size(); ++cut)
      ASSERT_EQ(parse_pieces(format, {text.substr(0, cut), text.substr(cut)}), whole) << cut;
  }
}

// Pieces of valid UTF-8 text give events of valid UTF-8, cut inside of characters or not.
TEST(ChatParserTest, EventsAreWholeCharacters) {
  for (const std::string& name : testing::call_templates()) {
    SCOPED_TRACE(name);
    const ChatFormat format = format_of(name);
    for (const std::string& text : corpus(name, format)) {
      if (!Json::accept(dump_json(Json(text))) ||
          dump_json(Json(text)).find("\xEF\xBF\xBD") != std::string::npos)
        continue;  // cut inside a character itself
      ChatParser parser(format, testing::test_tools(), Thoughts::kMaybe);
      std::vector<ChatEvent> events;
      for (const char c : text) parser.push(std::string_view(&c, 1), events);
      parser.finish(events);
      for (const ChatEvent& event : events)
        EXPECT_EQ(dump_json(Json(event.text)).find("\xEF\xBF\xBD"), std::string::npos) << event.text;
    }
  }
}

TEST(ChatParserTest, WhatIsNoCallIsText) {
  const ChatFormat hermes = format_of("hermes");
  for (const char* text : {
           "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>",
           "<tool_call>\n{\"name\": \"now\"",
           "<tool_call>\n{\"name\": now, \"arguments\": {}}\n</tool_call>",
           "<tool_call>\n{\"name\": \"now\", \"arguments\": [1]}\n</tool_call>",
           "<tool_call>now</tool_call>",
           "say <tool_call> twice: <tool_call>",
           "<tool_",
           "text <tool_call",
           "  \n leading and trailing \n ",
           "<tool_call>\n{\"arguments\": {}}\n</tool_call>",
       }) {
    SCOPED_TRACE(text);
    const ParsedAnswer answer = parse_whole(hermes, text);
    EXPECT_EQ(answer.text, text);
    EXPECT_TRUE(answer.calls.empty());
  }
  const ChatFormat llama = format_of("llama3");
  for (const char* text :
       {"{\"name\": \"Ann\"}", "{\"a\": 1}", "{", "say {\"name\": \"now\", \"parameters\": {}}",
        "{\"name\": \"unknown\", \"parameters\": {}}"}) {
    SCOPED_TRACE(text);
    EXPECT_EQ(parse_whole(llama, text).text, text);
  }
}

TEST(ChatParserTest, WithoutToolsCallsAreText) {
  for (const char* text :
       {"<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        "```json\n{\"name\": \"now\", \"arguments\": {}}\n```", "{\"name\": \"now\", \"arguments\": {}}"}) {
    SCOPED_TRACE(text);
    const ParsedAnswer answer = parse_whole(format_of("hermes"), text, Json::array());
    EXPECT_EQ(answer.text, text);
    EXPECT_TRUE(answer.calls.empty());
  }
}

TEST(ChatParserTest, TakesLooserSpellings) {
  const ChatFormat hermes = format_of("hermes");
  const std::vector<std::pair<std::string, std::string>> now = {{"now", "{}"}};
  for (const char* text : {
           "<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>",
           "<tool_call>\n\n{ \"arguments\" : {}, \"name\" : \"now\" }\n\n</tool_call>\n",
           "<tool_call>\n{\"id\": 5, \"name\": \"now\", \"arguments\": {}, \"type\": \"f\"}\n</tool_call>",
           "<tool_call>\n{\"name\": \"now\"}\n</tool_call>",
           "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}",
       }) {
    SCOPED_TRACE(text);
    const ParsedAnswer answer = parse_whole(hermes, text);
    EXPECT_EQ(answer.calls, now);
    EXPECT_EQ(answer.text, "");
  }
  const ParsedAnswer coder = parse_whole(
      format_of("qwen_coder"),
      "<tool_call><function=get_weather><parameter=city>Bern</parameter><parameter=exact>True</parameter>"
      "<parameter=place>{\"lat\": 1}</parameter></function></tool_call>");
  ASSERT_EQ(coder.calls.size(), 1u);
  EXPECT_EQ(coder.calls[0].second, R"({"city": "Bern", "exact": true, "place": {"lat": 1}})");
  const ParsedAnswer llama = parse_whole(
      format_of("llama3"),
      "<|python_tag|>{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"now\", \"parameters\": {}}");
  EXPECT_EQ(llama.calls.size(), 2u);
  const ParsedAnswer mistral =
      parse_whole(format_of("mistral_ids"), "[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{}");
  EXPECT_EQ(mistral.calls, now);
}

TEST(ChatParserTest, TypesComeFromTheSchema) {
  const ParsedAnswer answer = parse_whole(
      format_of("glm"),
      "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>123</arg_value>\n<arg_key>days</arg_key>\n"
      "<arg_value>123</arg_value>\n</tool_call>");
  ASSERT_EQ(answer.calls.size(), 1u);
  EXPECT_EQ(answer.calls[0].second, R"({"city": "123", "days": 123})");
}

TEST(ChatParserTest, TextAroundCalls) {
  const ParsedAnswer answer =
      parse_whole(format_of("hermes"),
                  "Let me look.\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\nDone.");
  EXPECT_EQ(answer.text, "Let me look.\nDone.");
  EXPECT_EQ(answer.calls.size(), 1u);
}

TEST(ChatParserTest, ThoughtsStandApart) {
  const ChatFormat format = format_of("hermes");
  const ParsedAnswer expected{"Hm.\n\nSo <tool_call>.", "Yes.", {}};
  EXPECT_EQ(parse_whole(format, "\n<think>\nHm.\n\nSo <tool_call>.\n</think>\n\nYes."), expected);
  EXPECT_EQ(
      parse_whole(format, "Hm.\n\nSo <tool_call>.\n</think>\n\nYes.", testing::test_tools(), Thoughts::kOpen),
      expected);
  EXPECT_EQ(parse_whole(format, "Say <think>.", testing::test_tools()).text, "Say <think>.");
  EXPECT_EQ(parse_whole(format, "<think>x</think>y", testing::test_tools(), Thoughts::kNone).text,
            "<think>x</think>y");
  const ParsedAnswer cut = parse_whole(format, "<think>\nHm. </thi");
  EXPECT_EQ(cut.reasoning, "Hm. </thi");
  EXPECT_EQ(cut.text, "");
  const ParsedAnswer call = parse_whole(
      format, "<think>\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>");
  EXPECT_EQ(call.reasoning, "Hm.");
  EXPECT_EQ(call.text, "");
  EXPECT_EQ(call.calls.size(), 1u);
}

// Arguments stream: what has arrived of them is out, but for what may still be a marker.
TEST(ChatParserTest, ArgumentsComeAsTheyAreWritten) {
  for (const char* name : {"hermes", "glm", "gemma4", "deepseek_v31"}) {
    SCOPED_TRACE(name);
    const ChatFormat format = format_of(name);
    const std::string text =
        write_calls(format.form, Json::array({make_call("get_weather", {{"city", std::string(1000, 'x')}})}));
    ChatParser parser(format, testing::test_tools(), Thoughts::kNone);
    std::vector<ChatEvent> events;
    const size_t half = text.find("xxx") + 500;
    parser.push(std::string_view(text).substr(0, half), events);
    ASSERT_GE(events.size(), 2u);
    EXPECT_EQ(events[0].kind, ChatEvent::Kind::kToolCall);
    EXPECT_TRUE(events[0].id.starts_with("call_"));
    EXPECT_GE(testing::put_together(events).calls[0].second.size(), 490u);
  }
}

}  // namespace
}  // namespace qiao::chat
