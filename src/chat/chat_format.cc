#include "chat/chat_format.h"

namespace qiao::chat {

struct ChatParser::State {};

ChatFormat detect_chat_format(std::string_view) { return {}; }

ChatParser::ChatParser(const ChatFormat&, const Json&, bool) : state_(std::make_unique<State>()) {}
ChatParser::ChatParser(ChatParser&&) noexcept = default;
ChatParser::~ChatParser() = default;

void ChatParser::push(std::string_view text, std::vector<ChatEvent>& events) {
  if (!text.empty()) events.push_back({ChatEvent::Kind::kText, std::string(text), {}, {}});
}

void ChatParser::finish(std::vector<ChatEvent>&) {}
int64_t ChatParser::tool_calls() const { return 0; }
bool ChatParser::in_thoughts() const { return false; }

bool opens_thoughts(const ChatFormat&, std::string_view) { return false; }

}  // namespace qiao::chat
