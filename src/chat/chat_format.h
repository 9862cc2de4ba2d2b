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
#include "chat/call_form.h"
#include "constrain/structure.h"

namespace qiao::chat {

enum class ToolSyntax {
  kNone,       // the template knows no tools
  kHermes,     // <tool_call>{"name", "arguments"}</tool_call>: Qwen2.5, Qwen3, Hermes
  kQwenCoder,  // <tool_call><function=NAME><parameter=KEY>…: Qwen3-Coder
  kLlama3,     // {"name", "parameters"} as the whole answer, or behind <|python_tag|>
  kMistral,    // [TOOL_CALLS][{"name", "arguments"}…] or [TOOL_CALLS]NAME[ARGS]{…}
  kDeepSeek,   // <｜tool▁calls▁begin｜>…
  kHunyuan,    // <tool_calls> around a list, <tool_call>NAME ```json…, or NAME<tool_sep><arg_key>…
  kGlm,        // <tool_call>NAME<arg_key>…
  kGemma,      // call:NAME{KEY:VALUE…} (Gemma 4, FunctionGemma)
};

struct ChatFormat {
  ToolSyntax tools = ToolSyntax::kNone;
  CallForm form;                         // of kNone: Hermes', which the model is then told of
  std::string think_begin, think_end;    // "<think>", "</think>"; empty: the model has no thoughts apart
  std::string answer_begin, answer_end;  // "<answer>": around what follows the thoughts (Hunyuan)
  // An answer that begins with a call's JSON object without the form's markers, bare or in a ``` fence, is a
  // call all the same. Only of forms that put such an object between markers; a caller who asks for answers
  // of JSON, or for the rest of one, says false.
  bool unmarked_calls = true;

  // What the template makes of messages:
  bool renders_tools = false;      // it shows the tools; otherwise a system text does
  bool takes_system = true;        // a system message is allowed
  bool several_calls = true;       // more than one call in a message
  bool arguments_as_text = false;  // it expects a call's arguments as JSON text, not as an object
  bool null_content = false;       // the content of a message with calls must be null, not empty
  bool short_ids = false;          // ids of calls must be 9 letters and digits (Mistral)
};

// Renders short conversations with the template and reads off how it writes calls and thoughts. What it
// cannot make out is as in ChatFormat{}: any template gives a format that can be served.
ChatFormat detect_chat_format(std::string_view template_source);

// Completes what the template is given: `messages` as ChatTurn has them (arguments as objects) become what
// this template renders, and "tools" is set, or their description stands in the system message where the
// template has no place for them.
Json chat_variables(const ChatFormat& format, Json messages, const Json& tools);

struct ToolChoice {
  enum class Kind { kAuto, kNone, kRequired, kNamed };
  Kind kind = Kind::kAuto;
  std::string name;  // of kNamed
};

// Where thoughts may stand in the answer.
enum class Thoughts {
  kNone,   // there are none, or the prompt's end has closed them
  kMaybe,  // the model may begin with some
  kOpen,   // the prompt's end has opened them
};
Thoughts thoughts_after(const ChatFormat& format, std::string_view prompt);

// What the answer must look like so that every call in it is one that the format's parser reads and whose
// arguments are valid for the tool's parameters. `tools` is OpenAI's list ({"type": "function", "function":
// {"name", "parameters", "strict"}}), checked by the caller; `tools_field` names it in errors:
// Error(kUnsupported) where this form cannot be held to a schema. `text`: what an answer without calls must
// look like (kFreeText without stops: anything).
constrain::Structure tool_structure(const ChatFormat& format, const Json& tools, std::string_view tools_field,
                                    const ToolChoice& choice, bool parallel, constrain::Structure text);
// Thoughts, where there may be some, before `answer`.
constrain::Structure with_thoughts(const ChatFormat& format, Thoughts thoughts, constrain::Structure answer);

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
// looks like a call and is none (cut off before its arguments, of no known tool, malformed) comes out as
// text. The arguments of a call that has begun are cut where they stop being readable; what follows is text.
class ChatParser {
 public:
  // `tools` empty: calls are plain text.
  ChatParser(const ChatFormat& format, const Json& tools, Thoughts thoughts);
  ChatParser(ChatParser&&) noexcept;
  ~ChatParser();
  // Pieces may end anywhere, also inside a UTF-8 character.
  void push(std::string_view text, std::vector<ChatEvent>& events);
  void finish(std::vector<ChatEvent>& events);
  int64_t tool_calls() const;
  bool in_thoughts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qiao::chat
