// The templates that models were published with. Run by published_templates.py, which knows where they are.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "chat_support.h"

namespace qiao::chat {
namespace {

// The beginning of a file's name gives what it is; the longest that fits counts. Those of forms that are not
// known here are kNone.
ToolSyntax expected_syntax(const std::string& file) {
  static const std::map<std::string, ToolSyntax> table = {
      {"Qwen", ToolSyntax::kHermes},
      {"Qwen3-Coder", ToolSyntax::kQwenCoder},
      {"Qwen3.5", ToolSyntax::kQwenCoder},
      {"NousResearch-Hermes", ToolSyntax::kHermes},
      {"meta-llama-Llama", ToolSyntax::kLlama3},
      {"mistralai", ToolSyntax::kMistral},
      {"Mistral", ToolSyntax::kMistral},
      {"unsloth-mistral", ToolSyntax::kMistral},
      {"deepseek-ai-DeepSeek", ToolSyntax::kDeepSeek},
      {"llama-cpp-deepseek", ToolSyntax::kDeepSeek},
      {"GLM", ToolSyntax::kGlm},
      {"tencent-Hy", ToolSyntax::kHunyuan},
      {"google-gemma-4", ToolSyntax::kGemma},
      {"google-gemma-2", ToolSyntax::kNone},
      {"microsoft-Phi-3.5", ToolSyntax::kNone},
      {"llama-cpp-rwkv", ToolSyntax::kNone},
      {"openai-gpt-oss", ToolSyntax::kNone},
  };
  ToolSyntax found = ToolSyntax::kNone;
  size_t longest = 0;
  for (const auto& [prefix, syntax] : table) {
    if (!file.starts_with(prefix) || prefix.size() < longest) continue;
    found = syntax;
    longest = prefix.size();
  }
  return longest > 0 ? found : static_cast<ToolSyntax>(-1);
}

TEST(PublishedTemplatesTest, AreKnown) {
  const char* folder = std::getenv("QIAO_PUBLISHED_TEMPLATES");
  if (folder == nullptr) GTEST_SKIP() << "run tests/chat/published_templates.py";
  size_t known = 0, count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".jinja") continue;
    ++count;
    const std::string file = entry.path().filename().string();
    SCOPED_TRACE(file);
    const ChatFormat format = detect_chat_format(read_file(entry.path()));
    const ToolSyntax expected = expected_syntax(file);
    if (expected != static_cast<ToolSyntax>(-1)) {
      ++known;
      EXPECT_EQ(format.tools, expected);
    }
    std::printf(
        "%-60s syntax %d body %d marker %-24s think %-12s tools %d system %d several %d text %d null %d ids "
        "%d\n",
        file.c_str(), static_cast<int>(format.tools), static_cast<int>(format.form.body),
        std::string(format.form.marker()).c_str(), format.think_begin.c_str(), format.renders_tools,
        format.takes_system, format.several_calls, format.arguments_as_text, format.null_content,
        format.short_ids);
    if (format.tools == ToolSyntax::kNone) continue;
    // What the template writes of a call its parser reads.
    const Json arguments = {{"city", "Bern \"x\""}, {"days", 3}};
    Json messages =
        Json::array({{{"role", "user"}, {"content", "Question?"}},
                     {{"role", "assistant"},
                      {"content", ""},
                      {"tool_calls", Json::array({testing::make_call("get_weather", arguments)})}}});
    Json variables = chat_variables(format, messages, testing::test_tools());
    variables["bos_token"] = "";
    variables["eos_token"] = "";
    const ChatTemplate source(read_file(entry.path()), file);
    const std::string text = source.render(complete_chat_variables(variables), 0);
    const size_t at = text.rfind("Question?");
    ASSERT_NE(at, std::string::npos);
    std::string answer = text.substr(at);
    const std::string_view marker = format.form.bare ? "{\"name\"" : format.form.marker();
    const size_t begin = answer.find(marker);
    ASSERT_NE(begin, std::string::npos) << answer;
    const auto parsed = testing::parse_whole(format, std::string_view(answer).substr(begin),
                                             testing::test_tools(), Thoughts::kNone);
    ASSERT_EQ(parsed.calls.size(), 1u) << answer;
    EXPECT_EQ(parse_json(parsed.calls[0].second, ""), arguments);
  }
  EXPECT_GE(known, 25u) << count;
}

}  // namespace
}  // namespace qiao::chat
