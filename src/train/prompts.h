// The prompts that completions are drawn for.
#pragma once

#include <string>
#include <vector>

#include "train/data.h"
#include "train/rows.h"
#include "train/tool_turns.h"

namespace qiao::train {

struct Prompt {
  std::string where;                // "FILE:LINE"
  Json row;                         // as the file has it: what a reward compares with
  Json messages;                    // null where the prompt is a text or tokens
  Json variables = Json::object();  // of the template: the row's chat_template_kwargs
  std::string text;                 // as the model sees it; empty where the row is tokens
  std::vector<TokenId> tokens;
};

// Rows are {"prompt": a text, or a list of messages}, {"messages": […]} or {"tokens": [ids]}, with whatever
// else a reward needs. Not thread-safe.
class Prompts {
 public:
  // `most_tokens` of a prompt: longer ones are bad rows. `turns` and `model` outlive this. Throws Error as
  // Rows does.
  Prompts(const DataOptions& options, const LanguageModel& model, const ToolTurns& turns, int64_t most_tokens,
          Warn warn);

  // The next `count`, over epochs without end.
  std::vector<Prompt> next(int64_t count);
  // What a checkpoint keeps. set_state throws Error(kInvalidInput) for a place that the files do not have.
  Json state() const;
  void set_state(const Json& state);

 private:
  Prompt make(Json row) const;
  const LanguageModel& model_;
  const ToolTurns& turns_;
  int64_t most_tokens_;
  Rows rows_;
  DataPosition position_;
};

}  // namespace qiao::train
