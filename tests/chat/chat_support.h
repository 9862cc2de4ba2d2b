// Small templates, tools and calls that the chat tests share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "chat/chat_format.h"
#include "text/chat_template.h"
#include "text/chat_variables.h"

namespace qiao::chat::testing {

// Every template of tests/chat/templates that shows calls.
inline const std::vector<std::string>& call_templates() {
  static const std::vector<std::string> names = {
      "hermes",      "qwen_coder",   "llama3",       "mistral_list",   "mistral_args", "mistral_ids",
      "deepseek_v3", "deepseek_v31", "deepseek_v32", "hunyuan_list",   "hunyuan_json", "hunyuan_tags",
      "glm",         "glm_tight",    "gemma4",       "function_gemma", "deepseek_r1"};
  return names;
}

inline std::string template_source(const std::string& name) {
  return read_file(QIAO_TEST_DATA "/chat/templates/" + name + ".jinja");
}

inline ChatFormat format_of(const std::string& name) { return detect_chat_format(template_source(name)); }

inline Json function_tool(std::string_view name, Json parameters) {
  return {{"type", "function"},
          {"function", {{"name", name}, {"description", "Does it."}, {"parameters", std::move(parameters)}}}};
}

inline Json test_tools() {
  return Json::array({function_tool("get_weather", parse_json(R"({"type": "object", "properties": {
                       "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
                       "tags": {"type": "array", "items": {"type": "string"}},
                       "place": {"type": "object", "properties": {"lat": {"type": "number"}, "name": {"type": "string"}},
                                 "required": ["lat"]}},
                       "required": ["city"]})",
                                                              "")),
                      function_tool("now", parse_json(R"({"type": "object", "properties": {}})", ""))});
}

inline Json make_call(std::string_view name, Json arguments) {
  return {{"id", "abcdefghi"},
          {"type", "function"},
          {"function", {{"name", name}, {"arguments", std::move(arguments)}}}};
}

inline Json weather_arguments() {
  return parse_json(
      R"({"city": "Zürich \"x\" 你好\n<b> & {c}", "days": 3, "exact": true, "tags": ["a", "b c"],
                        "place": {"lat": -1.5, "name": "N"}})",
      "");
}

// What the template writes for an assistant's message, which is what its model generates.
inline std::string rendered_answer(const std::string& name, const ChatFormat& format, Json message) {
  message["role"] = "assistant";
  Json messages = Json::array({{{"role", "user"}, {"content", "Question?"}}, std::move(message)});
  Json variables = chat_variables(format, std::move(messages), test_tools());
  variables["bos_token"] = "";
  const ChatTemplate source(template_source(name), name);
  const std::string text = source.render(complete_chat_variables(variables), 0);
  const std::string begin = "<|assistant|>", end = "<|end|>\n";
  const size_t at = text.rfind(begin) + begin.size();
  return text.substr(at, text.rfind(end) - at);
}

struct ParsedAnswer {
  std::string reasoning, text;
  std::vector<std::pair<std::string, std::string>> calls;  // name, arguments
  bool operator==(const ParsedAnswer&) const = default;
};

// Puts events together as a client does, and checks their order.
inline ParsedAnswer put_together(const std::vector<ChatEvent>& events) {
  ParsedAnswer answer;
  for (const ChatEvent& event : events) {
    switch (event.kind) {
      case ChatEvent::Kind::kReasoning:
        answer.reasoning += event.text;
        break;
      case ChatEvent::Kind::kText:
        answer.text += event.text;
        break;
      case ChatEvent::Kind::kToolCall:
        answer.calls.emplace_back(event.name, "");
        break;
      case ChatEvent::Kind::kToolArguments:
        answer.calls.at(answer.calls.size() - 1).second += event.text;
        break;
    }
  }
  return answer;
}

inline ParsedAnswer parse_pieces(const ChatFormat& format, const std::vector<std::string_view>& pieces,
                                 const Json& tools = test_tools(), Thoughts thoughts = Thoughts::kMaybe) {
  ChatParser parser(format, tools, thoughts);
  std::vector<ChatEvent> events;
  for (const std::string_view piece : pieces) parser.push(piece, events);
  parser.finish(events);
  return put_together(events);
}

inline ParsedAnswer parse_whole(const ChatFormat& format, std::string_view text,
                                const Json& tools = test_tools(), Thoughts thoughts = Thoughts::kMaybe) {
  return parse_pieces(format, {text}, tools, thoughts);
}

}  // namespace qiao::chat::testing
