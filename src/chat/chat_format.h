// How a model writes what is more than text: calls of tools, and thoughts before its answer. Chosen from the
// chat template, which shows the model its own earlier calls in the same form.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "constrain/structure.h"

namespace qiao::chat {

enum class ToolSyntax {
  kNone,       // the template knows no tools
  kHermes,     // <tool_call>{"name", "arguments"}</tool_call>: Qwen2.5, Qwen3, Hermes
  kQwenCoder,  // <tool_call><function=NAME><parameter=KEY>…: Qwen3-Coder
  kLlama3,     // {"name", "parameters"} as the whole answer, or behind <|python_tag|>
  kMistral,    // [TOOL_CALLS][{"name", "arguments"}…] or [TOOL_CALLS]NAME[ARGS]{…}
  kDeepSeek,   // <｜tool▁calls▁begin｜>…
  kHunyuan,    // <tool_calls><tool_call>NAME…
  kGlm,        // <tool_call>NAME<arg_key>…
  kGemma,      // ```tool_code, or the JSON form of its template
};

struct ChatFormat {
  ToolSyntax tools = ToolSyntax::kNone;
  std::string think_begin, think_end;  // "<think>", "</think>"; empty: the model has no thoughts apart
  // More about the dialect (Mistral's versions, DeepSeek's) as the implementation needs.
  int dialect = 0;
};

ChatFormat detect_chat_format(std::string_view template_source);

struct ToolChoice {
  enum class Kind { kAuto, kNone, kRequired, kNamed };
  Kind kind = Kind::kAuto;
  std::string name;  // of kNamed
};

// What the answer must look like so that every call in it is one that the format's parser reads and whose
// arguments are valid for the tool's parameters. `tools` is OpenAI's list ({"type": "function", "function":
// {"name", "parameters", "strict"}}), checked by the caller. Empty where nothing has to be held to.
// `thinking`: the prompt ends inside of thoughts, or the model may begin with some.
std::optional<constrain::Structure> tool_structure(const ChatFormat& format, const Json& tools,
                                                   const ToolChoice& choice, bool parallel, bool thinking);

// What an answer consists of, in order.
struct ChatEvent {
  enum class Kind {
    kReasoning,     // `text` of the thoughts
    kText,          // `text` of the answer
    kToolCall,      // a call begins: `id` ("call_…"), `name`; its index is the calls' count so far
    kToolArguments  // `text` of the last call's arguments: pieces of one JSON object's text
  };
  Kind kind;
  std::string text, id, name;
};

// Splits generated text into events as it streams: what may still become a marker is held back. Text that
// looks like a call and is none (cut off, malformed) comes out as text: nothing is dropped.
class ChatParser {
 public:
  // `in_thoughts`: the prompt's end has opened them. `tools` off: calls are plain text.
  ChatParser(const ChatFormat& format, const Json& tools, bool in_thoughts);
  ChatParser(ChatParser&&) noexcept;
  ~ChatParser();
  void push(std::string_view text, std::vector<ChatEvent>& events);
  void finish(std::vector<ChatEvent>& events);
  int64_t tool_calls() const;
  bool in_thoughts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Whether the rendered prompt ends inside thoughts that it opened itself ("<think>\n").
bool opens_thoughts(const ChatFormat& format, std::string_view prompt);

}  // namespace qiao::chat
