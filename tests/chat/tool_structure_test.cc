#include <gtest/gtest.h>

#include <random>

#include "chat/tool_schema.h"
#include "chat_support.h"
#include "constrain/constraint.h"
#include "support/expect_error.h"

namespace qiao::chat {
namespace {

using constrain::Structure;
using testing::format_of;
using testing::function_tool;
using testing::make_call;
using Kind = ToolChoice::Kind;

std::shared_ptr<constrain::CompiledGrammar> compile_tools(const ChatFormat& format, const ToolChoice& choice,
                                                          bool parallel = true,
                                                          const Json& tools = testing::test_tools()) {
  return constrain::compile_structure(
      tool_structure(format, tools, "tools", choice, parallel, Structure::free_text({})), "tools");
}

bool accepts(const std::shared_ptr<constrain::CompiledGrammar>& grammar, std::string_view text) {
  constrain::ConstraintState state(grammar);
  return state.accept_bytes(text) == text.size() && state.can_end();
}

std::string call_text(const ChatFormat& format, const Json& arguments, const char* name = "get_weather") {
  return write_calls(format.form, Json::array({make_call(name, arguments)}));
}

TEST(ToolStructureTest, HoldsCallsToTheirSchema) {
  for (const std::string& name : testing::call_templates()) {
    SCOPED_TRACE(name);
    const ChatFormat format = format_of(name);
    const auto required = compile_tools(format, {Kind::kRequired, ""});
    EXPECT_TRUE(accepts(required, call_text(format, {{"city", "Bern"}})))
        << call_text(format, {{"city", "Bern"}});
    EXPECT_TRUE(accepts(required, call_text(format, Json::object(), "now")));
    EXPECT_TRUE(
        accepts(required, call_text(format, {{"city", "B"}, {"days", 3}, {"exact", true}, {"tags", {"a"}}})));
    EXPECT_FALSE(accepts(required, call_text(format, Json::object()))) << "city is required";
    EXPECT_FALSE(accepts(required, call_text(format, {{"city", "B"}, {"days", 1.5}})));
    EXPECT_FALSE(accepts(required, call_text(format, {{"city", "B"}, {"exact", 1}})));
    EXPECT_FALSE(accepts(required, call_text(format, {{"city", "B"}, {"colour", 1}})));
    EXPECT_FALSE(accepts(required, call_text(format, Json::object(), "other")));
    EXPECT_FALSE(accepts(required, "Hello"));
    EXPECT_FALSE(accepts(required, ""));
  }
}

TEST(ToolStructureTest, AutoIsTextUntilACallBegins) {
  for (const std::string& name : testing::call_templates()) {
    SCOPED_TRACE(name);
    const ChatFormat format = format_of(name);
    const auto grammar = compile_tools(format, {});
    EXPECT_TRUE(accepts(grammar, ""));
    EXPECT_TRUE(accepts(grammar, "Hello, 你好 < [ {"));
    EXPECT_TRUE(accepts(grammar, call_text(format, {{"city", "Bern"}})));
    if (!format.form.bare) {
      EXPECT_TRUE(accepts(grammar, "Let me look.\n" + call_text(format, {{"city", "Bern"}})));
      EXPECT_FALSE(accepts(grammar, "Look: " + std::string(format.form.marker()) + " of nothing"));
    } else {
      EXPECT_TRUE(accepts(grammar, "{\"a\": 1}"));
      EXPECT_FALSE(accepts(grammar, "{\"name\": 1}"));
    }
    EXPECT_FALSE(accepts(grammar, call_text(format, {{"city", "B"}, {"days", "x"}}))) << format.form.end;
  }
}

TEST(ToolStructureTest, NamedAndParallel) {
  for (const std::string& name : testing::call_templates()) {
    SCOPED_TRACE(name);
    const ChatFormat format = format_of(name);
    const auto named = compile_tools(format, {Kind::kNamed, "now"});
    EXPECT_TRUE(accepts(named, call_text(format, Json::object(), "now")));
    EXPECT_FALSE(accepts(named, call_text(format, {{"city", "Bern"}})));
    const Json two =
        Json::array({make_call("now", Json::object()), make_call("get_weather", {{"city", "B"}})});
    EXPECT_EQ(accepts(compile_tools(format, {Kind::kRequired, ""}), write_calls(format.form, two)),
              format.several_calls);
    EXPECT_FALSE(accepts(compile_tools(format, {Kind::kRequired, ""}, false), write_calls(format.form, two)));
  }
}

TEST(ToolStructureTest, ThoughtsComeFirst) {
  const ChatFormat format = format_of("hermes");
  const auto open = constrain::compile_structure(
      with_thoughts(format, Thoughts::kOpen, Structure::json({{"type", "boolean"}})), "f");
  EXPECT_TRUE(accepts(open, "So { it is.</think>\n\ntrue"));
  EXPECT_FALSE(accepts(open, "true"));
  EXPECT_FALSE(accepts(open, "x</think>\n\nmaybe"));
  const auto maybe = constrain::compile_structure(
      with_thoughts(format, Thoughts::kMaybe, Structure::json({{"type", "boolean"}})), "f");
  EXPECT_TRUE(accepts(maybe, "<think>\nSo.\n</think>\n\ntrue"));
  EXPECT_TRUE(accepts(maybe, "true"));
  EXPECT_FALSE(accepts(maybe, "So."));
}

TEST(ToolStructureTest, TextMayHaveAFormOfItsOwn) {
  const ChatFormat format = format_of("hermes");
  const auto grammar =
      constrain::compile_structure(tool_structure(format, testing::test_tools(), "tools", {}, true,
                                                  Structure::json({{"type", "boolean"}})),
                                   "t");
  EXPECT_TRUE(accepts(grammar, "true"));
  EXPECT_TRUE(accepts(grammar, call_text(format, Json::object(), "now")));
  EXPECT_FALSE(accepts(grammar, "hello"));
}

TEST(ToolStructureTest, RefusesWhatItCannotHold) {
  const Json odd = Json::array({function_tool(
      "f", {{"type", "object"}, {"properties", {{"a", {{"type", "string"}}}}}, {"minProperties", 1}})});
  EXPECT_QIAO_ERROR(tool_structure(format_of("glm"), odd, "tools", {}, true, Structure::free_text({})),
                    kUnsupported, "tools[0].function.parameters: ", "minProperties");
  const Json pattern = Json::array({function_tool(
      "f", {{"type", "object"}, {"properties", {{"a", {{"type", "string"}, {"pattern", "^a"}}}}}})});
  EXPECT_QIAO_ERROR(tool_structure(format_of("gemma4"), pattern, "tools", {}, true, Structure::free_text({})),
                    kUnsupported, "tools[0].function.parameters: ", "pattern");
}

// Whatever the grammar lets through the parser reads, and the arguments are valid for the schema.
TEST(ToolStructureTest, RandomAnswersAreReadAndValid) {
  std::mt19937 random(11);
  const Json tools = Json::array({function_tool("f", parse_json(R"({"type": "object", "properties": {
             "text": {"type": "string"}, "choice": {"enum": ["red", "green"]}, "number": {"type": "integer"},
             "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
             "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, "required": ["choice"]})",
                                                                ""))});
  const auto schema = constrain::compile_json_schema(parameters_of(tools[0]["function"]), "schema");
  for (const std::string& name : testing::call_templates()) {
    const ChatFormat format = format_of(name);
    const auto grammar = compile_tools(format, {Kind::kRequired, ""}, true, tools);
    int read = 0;
    for (int round = 0; round < 120; ++round) {
      constrain::ConstraintState state(grammar);
      std::string text;
      while (text.size() < 600 && !(state.can_end() && random() % 3 == 0)) {
        std::string next;
        for (int byte = 1; byte < 127; ++byte) {
          const char c = static_cast<char>(byte);
          constrain::ConstraintState probe = state;
          if (probe.accept_bytes({&c, 1}) == 1) next += c;
        }
        if (next.empty() && state.must_end()) break;
        if (next.empty()) {
          const std::string forced = state.forced_bytes();
          ASSERT_FALSE(forced.empty()) << name << ": " << text;
          state.accept_bytes(forced);
          text += forced;
          continue;
        }
        // Often what may close something, so that texts end.
        const size_t closing = next.find_first_of("\"}]<");
        const char c =
            closing != std::string::npos && random() % 2 == 0 ? next[closing] : next[random() % next.size()];
        ASSERT_EQ(state.accept_bytes({&c, 1}), 1u);
        text += c;
      }
      if (!state.can_end()) continue;
      SCOPED_TRACE(name + ": " + text);
      ++read;
      const auto answer = testing::parse_whole(format, text, tools, Thoughts::kNone);
      EXPECT_EQ(answer.text, "");
      ASSERT_FALSE(answer.calls.empty());
      for (const auto& [called, arguments] : answer.calls) {
        EXPECT_EQ(called, "f");
        constrain::ConstraintState check(schema);
        EXPECT_TRUE(check.accept_bytes(arguments) == arguments.size() && check.can_end()) << arguments;
      }
    }
    EXPECT_GT(read, 10) << name;
  }
}

}  // namespace
}  // namespace qiao::chat
