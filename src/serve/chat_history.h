// A conversation as templates take it, put together from the items or blocks of other APIs than OpenAI's
// chat.
#pragma once

#include <map>
#include <string>

#include "serve/fields.h"

namespace qiao::serve {

inline constexpr size_t kMaxHistoryEntries = 10'000;

// Neighbours of one role become one message: many templates ask for turns that alternate, and both APIs allow
// more. Errors name `field`, where the entry came from.
class ChatHistory {
 public:
  // Instructions: a system's or developer's.
  void add_system(const std::string& text);
  void add_user(const std::string& text);
  // Of the assistant's turn, in order.
  void add_thoughts(const std::string& text);
  void add_answer(const std::string& text);
  void add_call(const std::string& id, const std::string& name, Json arguments, const std::string& field);
  // Of a call that came before.
  void add_result(const std::string& id, const std::string& text, const std::string& field);

  bool empty() const { return messages_.empty(); }
  // Whether the assistant's turn is the last.
  bool ends_with_answer() const;
  Json take() { return std::move(messages_); }

 private:
  Json& assistant();

  Json messages_ = Json::array();
  std::map<std::string, std::string, std::less<>> calls_;  // id: name
};

// 1 to 128 letters, digits, '_' and '-': ApiError naming `field` otherwise.
void check_tool_name(const std::string& name, const std::string& field);

// A call's arguments, given as JSON text. Empty text: no arguments.
Json parse_arguments(const std::string& text, const std::string& field);

}  // namespace qiao::serve
