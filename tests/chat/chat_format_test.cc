#include "chat/chat_format.h"

#include <gtest/gtest.h>

#include "chat_support.h"

namespace qiao::chat {
namespace {

using Body = CallForm::Body;
using testing::format_of;
using testing::make_call;

TEST(ChatFormatTest, TellsFormsApart) {
  const struct {
    const char* name;
    ToolSyntax syntax;
    Body body;
    const char* marker;
  } cases[] = {
      {"hermes", ToolSyntax::kHermes, Body::kCallObject, "<tool_call>"},
      {"qwen_coder", ToolSyntax::kQwenCoder, Body::kTags, "<tool_call>"},
      {"llama3", ToolSyntax::kLlama3, Body::kCallObject, ""},
      {"mistral_list", ToolSyntax::kMistral, Body::kCallList, "[TOOL_CALLS]"},
      {"mistral_args", ToolSyntax::kMistral, Body::kJson, "[TOOL_CALLS]"},
      {"mistral_ids", ToolSyntax::kMistral, Body::kJson, "[TOOL_CALLS]"},
      {"deepseek_v3", ToolSyntax::kDeepSeek, Body::kJson, "<｜tool▁calls▁begin｜>"},
      {"deepseek_r1", ToolSyntax::kDeepSeek, Body::kJson, "<｜tool▁calls▁begin｜>"},
      {"deepseek_v31", ToolSyntax::kDeepSeek, Body::kJson, "<｜tool▁calls▁begin｜>"},
      {"deepseek_v32", ToolSyntax::kDeepSeek, Body::kTags, "<｜DSML｜function_calls>"},
      {"hunyuan_list", ToolSyntax::kHunyuan, Body::kCallList, "<tool_calls>"},
      {"hunyuan_json", ToolSyntax::kHunyuan, Body::kJson, "<tool_calls>"},
      {"hunyuan_tags", ToolSyntax::kHunyuan, Body::kTags, "<tool_calls:open>"},
      {"glm", ToolSyntax::kGlm, Body::kTags, "<tool_call>"},
      {"glm_tight", ToolSyntax::kGlm, Body::kTags, "<tool_call>"},
      {"gemma4", ToolSyntax::kGemma, Body::kGemma, "<|tool_call>call:"},
      {"function_gemma", ToolSyntax::kGemma, Body::kGemma, "<start_function_call>call:"},
      {"plain", ToolSyntax::kNone, Body::kCallObject, "<tool_call>"},
  };
  for (const auto& expected : cases) {
    SCOPED_TRACE(expected.name);
    const ChatFormat format = format_of(expected.name);
    EXPECT_EQ(format.tools, expected.syntax);
    EXPECT_EQ(format.form.body, expected.body);
    EXPECT_EQ(format.form.marker(), expected.marker);
  }
}

TEST(ChatFormatTest, KnowsWhatTheTemplateTakes) {
  EXPECT_TRUE(format_of("hermes").renders_tools);
  EXPECT_FALSE(format_of("deepseek_v3").renders_tools);
  EXPECT_FALSE(format_of("deepseek_r1").renders_tools) << "fails on a list of tools";
  EXPECT_TRUE(format_of("deepseek_r1").several_calls);
  EXPECT_FALSE(format_of("plain").renders_tools);
  EXPECT_FALSE(format_of("plain_strict").takes_system);
  EXPECT_TRUE(format_of("plain").takes_system);
  EXPECT_FALSE(format_of("llama3").several_calls);
  EXPECT_TRUE(format_of("hermes").several_calls);
  EXPECT_TRUE(format_of("mistral_list").short_ids);
  EXPECT_TRUE(format_of("mistral_ids").short_ids);
  EXPECT_FALSE(format_of("mistral_args").short_ids);
  EXPECT_TRUE(format_of("deepseek_v3").arguments_as_text);
  EXPECT_TRUE(format_of("deepseek_v3").null_content);
  EXPECT_FALSE(format_of("hermes").arguments_as_text);
}

TEST(ChatFormatTest, FindsThoughts) {
  EXPECT_EQ(format_of("hermes").think_begin, "<think>");
  EXPECT_EQ(format_of("deepseek_v3").think_end, "</think>");
  EXPECT_EQ(format_of("hunyuan_tags").think_begin, "<think:open>");
  EXPECT_EQ(format_of("hunyuan_tags").think_end, "</think:open>");
  EXPECT_EQ(format_of("plain").think_begin, "");
  const ChatFormat format = format_of("hermes");
  EXPECT_EQ(thoughts_after(format, "<|assistant|>"), Thoughts::kMaybe);
  EXPECT_EQ(thoughts_after(format, "<|assistant|><think>\n"), Thoughts::kOpen);
  EXPECT_EQ(thoughts_after(format, "<|assistant|><think>\n\n</think>\n\n"), Thoughts::kNone);
  EXPECT_EQ(thoughts_after(format_of("plain"), "<think>"), Thoughts::kNone);
}

TEST(ChatFormatTest, AnyTextIsATemplate) {
  for (const char* source : {"", "hello", "{{ raise_exception('no') }}", "{% if %}", "{{ messages[7].x.y }}",
                             "{% for m in messages %}{{ m.tool_calls }}{% endfor %}"}) {
    SCOPED_TRACE(source);
    EXPECT_EQ(detect_chat_format(source).tools, ToolSyntax::kNone);
  }
}

// What the template writes is what the form would: the grammar and the system text are made of the form.
TEST(ChatFormatTest, FormIsTheTemplates) {
  for (const std::string& name : testing::call_templates()) {
    SCOPED_TRACE(name);
    const ChatFormat format = format_of(name);
    Json calls = Json::array({make_call("get_weather", {{"city", "Bern"}, {"days", 2}})});
    if (format.several_calls) calls.push_back(make_call("get_weather", {{"city", "Ulm"}, {"exact", true}}));
    std::string rendered = testing::rendered_answer(
        name, format, {{"content", format.null_content ? Json(nullptr) : Json("")}, {"tool_calls", calls}});
    if (name == "mistral_list" || name == "mistral_ids") {  // their models write no ids
      for (const char* id : {", \"id\": \"abcdefghi\"", "[CALL_ID]abcdefghi"}) {
        for (size_t at; (at = rendered.find(id)) != std::string::npos;)
          rendered.erase(at, std::string_view(id).size());
      }
    }
    const size_t at = rendered.find(write_calls(format.form, calls));
    EXPECT_NE(at, std::string::npos) << rendered << "\n--- and ---\n" << write_calls(format.form, calls);
  }
}

TEST(ChatFormatTest, MessagesBecomeWhatTheTemplateTakes) {
  const Json messages =
      Json::array({{{"role", "user"}, {"content", "Q"}},
                   {{"role", "assistant"}, {"tool_calls", Json::array({make_call("now", Json::object())})}},
                   {{"role", "tool"}, {"tool_call_id", "call_of_some_length"}, {"content", "12:00"}}});
  const Json tools = testing::test_tools();
  const Json text = chat_variables(format_of("deepseek_v3"), messages, tools);
  const Json& call = text["messages"][2]["tool_calls"][0];  // behind the system message with the tools
  EXPECT_EQ(call["function"]["arguments"], "{}");
  EXPECT_TRUE(text["messages"][2]["content"].is_null());
  EXPECT_FALSE(text.contains("tools"));
  const auto system = text["messages"][0]["content"].get<std::string>();
  EXPECT_NE(system.find("get_weather"), std::string::npos);
  EXPECT_NE(system.find("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION_NAME"),
            std::string::npos)
      << system;

  const Json mistral = chat_variables(format_of("mistral_ids"), messages, tools);
  EXPECT_EQ(mistral["messages"][2]["tool_call_id"].get<std::string>().size(), 9u);
  EXPECT_EQ(mistral["messages"][1]["tool_calls"][0]["id"], "abcdefghi");
  EXPECT_EQ(mistral["messages"][1]["content"], "");
  EXPECT_EQ(mistral["tools"], tools);

  const Json plain = chat_variables(format_of("plain"), messages, tools);
  ASSERT_EQ(plain["messages"].size(), 4u);
  EXPECT_EQ(plain["messages"][0]["role"], "system");
  EXPECT_EQ(plain["messages"][2]["content"],
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>");
  EXPECT_EQ(plain["messages"][3]["role"], "user");
  EXPECT_EQ(plain["messages"][3]["content"], "<tool_response>\n12:00\n</tool_response>");
  EXPECT_FALSE(plain["messages"][2].contains("tool_calls"));

  const Json strict = chat_variables(format_of("plain_strict"), messages, tools);
  EXPECT_EQ(strict["messages"][0]["role"], "user");
  EXPECT_TRUE(strict["messages"][0]["content"].get<std::string>().ends_with("\n\nQ"));
}

}  // namespace
}  // namespace qiao::chat
