// Conversations in which the model calls tools, token in and token out: what the model drew is never turned
// into text and back. An answer is read for its calls; behind it goes the text that the chat template puts
// there.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "chat/chat_format.h"
#include "infer/language_model.h"

namespace qiao::train {

// OpenAI's list of tools, of a file. Throws Error(kInvalidInput) naming the entry and what was expected.
Json read_tools_file(const std::filesystem::path& path);

// Safe from any thread after construction.
class ToolTurns {
 public:
  // `model` (with a chat template) outlives this; `tools` may be empty: there are no calls then. Throws
  // Error(kUnsupported) where the template does not let tools' results follow an answer as it stands.
  ToolTurns(const LanguageModel& model, Json tools);

  // The text from which a conversation's next answer begins.
  std::string render_prompt(const Json& messages, const Json& variables) const;

  struct Answer {
    Json message;                // {"role": "assistant", "content", "reasoning_content", "tool_calls"}
    Json calls = Json::array();  // [{"id", "name", "arguments": {…}}]; empty: the answer is the last
  };
  // `drawn` without the token that ended it, behind `prompt` (its end tells whether thoughts are open). Calls
  // get the ids call_N, with N from `first_call`.
  Answer read_answer(const std::vector<TokenId>& drawn, std::string_view prompt, int64_t first_call) const;

  // What stands between the token that ended the answer, `end`, and the next answer, where `results`
  // (messages of the role tool) follow. Throws Error(kUnsupported) where the template renders the
  // conversation so far otherwise once they do.
  std::string text_behind(const Json& messages, const Json& answer, const Json& results, TokenId end,
                          const Json& variables) const;

 private:
  std::string render(const Json& messages, const Json& variables, bool opens_answer) const;
  const LanguageModel& model_;
  const Json tools_;
  chat::ChatFormat format_;
  std::vector<TokenId> end_tokens_;
};

}  // namespace qiao::train
