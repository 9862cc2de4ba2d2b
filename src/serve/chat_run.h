// One answer of a chat, in no API's words: what /v1/chat/completions, /v1/responses and /v1/messages share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "chat/chat_format.h"
#include "serve/generation_fields.h"
#include "serve/server.h"

namespace qiao::serve {

// What the answer's text must be; checked and compiled by run_chat, errors name `field`.
struct OutputFormat {
  enum class Kind { kText, kJsonObject, kJsonSchema, kRegex, kGrammar, kChoice };
  Kind kind = Kind::kText;
  Json schema;                       // of kJsonSchema
  std::string source;                // of kRegex and kGrammar
  std::vector<std::string> choices;  // of kChoice
  std::string field;                 // "response_format.json_schema.schema": where it came from
};

// What the fields of /v1/chat/completions and /v1/completions ask for: response_format, and vLLM's and
// llama-server's spellings (guided_json…, structured_outputs, grammar, json_schema), of which one may be
// given.
OutputFormat read_output_format(Fields& fields);
// OpenAI's response_format object, which stands at `field`.
OutputFormat read_response_format(const Json& format, const std::string& field);
// A part of an answer. Of kText: any text.
constrain::Structure output_structure(const OutputFormat& format);
// Null for kText. Compiled once and kept.
std::shared_ptr<constrain::CompiledGrammar> compile_output_format(ServeContext& context,
                                                                  const OutputFormat& format);

struct ChatTurn {
  // As templates take them: role, content (text), tool_calls ({"id", "type", "function": {"name",
  // "arguments": object}}), tool_call_id, name, reasoning_content. Checked by the endpoint.
  Json messages = Json::array();
  Json tools = Json::array();  // OpenAI's list; checked by check_tools
  std::string tools_field = "tools";
  chat::ToolChoice tool_choice;
  bool parallel_tool_calls = true;
  Json template_variables = Json::object();  // chat_template_kwargs, reasoning_effort…
  bool add_generation_prompt = true;
  std::string answer_start;               // what the answer begins with: generation goes on from there
  std::string prompt_field = "messages";  // what an error names where the prompt is too long
  OutputFormat format;
  GenerationFields generation;  // n, sampling, stop, ignore_eos
  int64_t max_tokens = -1;
  bool logprobs = false;
  int32_t top_logprobs = 0;
  std::string tenant;
  std::string adapter;  // name of a LoRA adapter; empty: none
};

// How a choice ended.
struct ChatFinish {
  // kToolCalls: it stopped after calls of tools.
  enum class Reason { kStop, kLength, kToolCalls, kCancelled, kError };
  Reason reason = Reason::kStop;
  std::string error;  // with kError
  ErrorKind error_kind = ErrorKind::kIo;
  std::string stop_text;  // the stop string that ended it, if one did
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0, reasoning_tokens = 0;
};

// Whoever writes the answer down. Methods are called one at a time, in order, from the engine's thread and
// must not block. Nothing is called after the last choice's on_finish.
class ChatSink {
 public:
  virtual ~ChatSink() = default;
  // All requests are queued: a stream begins here. An answer that cannot begin throws out of run_chat
  // instead.
  virtual void on_begin(int64_t prompt_tokens) { (void)prompt_tokens; }
  virtual void on_event(size_t choice, const chat::ChatEvent& event) = 0;
  // A token, where logprobs were asked for: before the events that its text gives.
  virtual void on_token(size_t choice, const GenerationEvent& token) { (void)choice, (void)token; }
  virtual void on_finish(size_t choice, const ChatFinish& finish) = 0;
};

// Checks OpenAI's list of tools (names, count, schemas' sizes); ApiError names the entry. At most
// kMaxTools of them.
inline constexpr size_t kMaxTools = 512;
void check_tools(const Json& tools, const std::string& field);
// OpenAI's tool_choice: "auto", "none", "required" or {"type": "function", "function": {"name"}}. `tools`
// have been checked.
chat::ToolChoice read_tool_choice(const Json& choice, const std::string& field, const Json& tools);

// Renders, tokenizes, compiles what the answer must look like, submits the choices. Throws ApiError or Error
// where any of it is refused. A peer that hangs up cancels them.
void run_chat(ServeContext& context, ChatTurn turn, const std::shared_ptr<HttpExchange>& exchange,
              std::shared_ptr<ChatSink> sink);

// Messages as run_chat takes them, from OpenAI's list (what `field` names).
Json read_chat_messages(const Json& messages, const std::string& field, const ServeContext& context);
// The part of a message's content that is text: a string, or parts of which only texts can be read here.
std::string read_content_text(const Json& content, const std::string& field);

// The number of tokens of the turn's prompt.
int64_t count_chat_tokens(ServeContext& context, const ChatTurn& turn);

}  // namespace qiao::serve
