#include "train/prompts.h"

#include <optional>

#include "base/error.h"
#include "train/chat_rows.h"
#include "train/documents.h"

namespace qiao::train {

Prompts::Prompts(const DataOptions& options, const LanguageModel& model, const ToolTurns& turns,
                 int64_t most_tokens, Warn warn)
    : model_(model), turns_(turns), most_tokens_(most_tokens), rows_(options, std::move(warn)) {}

Prompt Prompts::make(Json row) const {
  constexpr const char* kExpected =
      R"("prompt" (a text or a list of messages), "messages" or "tokens" (a list of ids) was expected)";
  if (!row.is_object()) throw_error(ErrorKind::kInvalidInput, "an object was expected; in it {}", kExpected);
  const auto member = [&](const char* name, bool (Json::*is)() const) {
    const auto found = row.find(name);
    return found != row.end() && ((*found).*is)() ? &*found : nullptr;
  };
  Prompt prompt;
  const Json* messages = member("messages", &Json::is_array);
  if (messages == nullptr) messages = member("prompt", &Json::is_array);
  if (messages != nullptr) {
    Conversation conversation;
    read_tools(row, conversation);
    if (!conversation.tools.is_null())
      throw_error(ErrorKind::kInvalidInput, "tools: a row has none of its own here; --tools was expected");
    prompt.messages = read_messages(*messages, "messages");
    prompt.variables = std::move(conversation.variables);
    prompt.text = turns_.render_prompt(prompt.messages, prompt.variables);
    prompt.tokens = model_.encode_rendered_chat(prompt.text);
  } else if (const Json* text = member("prompt", &Json::is_string)) {
    prompt.text = text->get<std::string>();
    prompt.tokens = model_.encode_prompt(prompt.text);
  } else if (const Json* tokens = member("tokens", &Json::is_array)) {
    prompt.tokens = read_token_ids(*tokens, "tokens", model_.decoder().config().vocabulary_size);
  } else {
    throw_error(ErrorKind::kInvalidInput, "{}", kExpected);
  }
  if (prompt.tokens.empty() || std::ssize(prompt.tokens) > most_tokens_) {
    throw_error(ErrorKind::kInvalidInput,
                "a prompt of {} tokens; 1 to {} were expected (--seq less --max-tokens)",
                prompt.tokens.size(), most_tokens_);
  }
  prompt.row = std::move(row);
  return prompt;
}

std::vector<Prompt> Prompts::next(int64_t count) {
  std::vector<Prompt> prompts;
  while (std::ssize(prompts) < count) {
    const int64_t number = rows_.at(position_.epoch, position_.row);
    if (std::optional<Row> row = rows_.read(number)) {
      try {
        prompts.push_back(make(std::move(row->json)));
        prompts.back().where = rows_.where(number);
      } catch (const Error& error) {
        rows_.refuse(number, error.what());
      }
    }
    if (++position_.row == rows_.size()) position_ = {position_.epoch + 1, 0, 0};
  }
  return prompts;
}

Json Prompts::state() const {
  Json state = rows_.state();
  state.update(to_json(position_));
  return state;
}

void Prompts::set_state(const Json& state) {
  rows_.set_state(state);
  const DataPosition position = read_position(state);
  if (position.row >= rows_.size()) {
    throw_error(ErrorKind::kInvalidInput,
                "data: the run stands at row {} and there are {}: other files than those it began with",
                position.row, rows_.size());
  }
  position_ = position;
}

}  // namespace qiao::train
