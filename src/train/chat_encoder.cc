#include "train/chat_encoder.h"

#include <algorithm>
#include <ctime>

#include "base/error.h"
#include "base/file.h"
#include "text/chat_text.h"
#include "text/chat_variables.h"

namespace qiao::train {
namespace {

// Renders of a conversation, times its bytes: what a hostile row may cost.
constexpr size_t kMostWork = size_t{1} << 30;
constexpr std::string_view kSpaces = " \t\r\n";
constexpr std::string_view kBrackets = "<|[";  // that markers begin with

size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) + 1 - begin);
}

Json first_messages(const Json& messages, size_t count) {
  Json list = Json::array();
  for (size_t i = 0; i < count; ++i) list.push_back(messages[i]);
  return list;
}

// `value` with `text` in place of every string that an answer shows.
void replace_texts(Json& value, const std::string& text) {
  if (value.is_string()) value = text;
  if (!value.is_structured()) return;
  for (auto& [key, inner] : value.items())
    if (key != "role" && key != "type" && key != "id") replace_texts(inner, text);
}

// Which tokens of a text begin where in it.
class TokenPlaces {
 public:
  TokenPlaces(const Tokenizer& tokenizer, std::string_view text, std::span<const TokenId> tokens)
      : tokenizer_(tokenizer), text_(text) {
    for (const TokenId token : tokens) {
      begins_.push_back(joined_.size());
      joined_ += tokenizer.token_bytes(token);
    }
    alike_ = joined_ == text;
  }

  // The token that holds the byte at `offset` of the text; it may begin before it.
  size_t holding(size_t offset) const {
    const size_t at = place(offset);
    if (at >= joined_.size()) return begins_.size();
    return static_cast<size_t>(std::ranges::upper_bound(begins_, at) - begins_.begin()) - 1;
  }
  // The first token that begins at `offset` or behind it.
  size_t first_from(size_t offset) const {
    return static_cast<size_t>(std::ranges::lower_bound(begins_, place(offset)) - begins_.begin());
  }

 private:
  // Where the text was normalized, its beginning is encoded alone: other tokens, perhaps, of the same bytes.
  size_t place(size_t offset) const {
    if (alike_) return offset;
    while (offset > 0 && offset < text_.size() && (static_cast<unsigned char>(text_[offset]) & 0xC0) == 0x80)
      --offset;
    std::string bytes;
    for (const TokenId token : tokenizer_.encode(text_.substr(0, offset)))
      bytes += tokenizer_.token_bytes(token);
    return common_prefix(bytes, joined_);
  }

  const Tokenizer& tokenizer_;
  std::string_view text_;
  std::string joined_;  // what the tokens add up to
  std::vector<size_t> begins_;
  bool alike_ = false;
};

std::string read_template(const ModelFiles& files, const std::filesystem::path& file) {
  if (!file.empty()) return read_file(file, TemplateLimits().max_source_bytes);
  std::string source = files.chat_template();
  if (source.empty()) {
    throw_error(ErrorKind::kUnsupported,
                "{}: the model has no chat template to write conversations by; give one with --chat-template "
                "FILE (Jinja)",
                files.path().string());
  }
  return source;
}

}  // namespace

ChatEncoder::ChatEncoder(const ModelFiles& files, const Tokenizer* tokenizer,
                         const ChatEncoderOptions& options)
    : tokenizer_(tokenizer), now_(options.now >= 0 ? options.now : std::time(nullptr)) {
  if (tokenizer == nullptr) {
    throw_error(ErrorKind::kUnsupported,
                "{}: conversations need a tokenizer and the model has none (tokenizer.json)",
                files.path().string());
  }
  const std::string source = read_template(files, options.template_file);
  template_.emplace(source, options.template_file.empty() ? files.path().string() + ": chat template"
                                                          : options.template_file.string());
  format_ = chat::detect_chat_format(source);
  knows_developer_ = source.find("developer") != std::string::npos;
  end_tokens_ = find_end_tokens(
      *tokenizer, files.kind() == ModelFiles::Kind::kHuggingFace ? files.generation_config() : Json());
  find_openings();
}

// What a prompt ends with, and the part of it that is also there before earlier answers: templates whose
// prompt opens thoughts ("<think>") leave those out of what is past.
void ChatEncoder::find_openings() {
  const auto message = [](const char* role, const char* text) -> Json {
    return {{"role", role}, {"content", text}};
  };
  const Json question = message("user", "Q1"), answer = message("assistant", "A1"),
             more = message("user", "Q2");
  const auto prompt = try_render({}, Json::array({question}), true);
  const auto asked = try_render({}, Json::array({question}), false);
  if (!prompt || !asked) return;
  size_t begin = common_prefix(*prompt, *asked);
  // The end of the whole text and the opening may begin with the same bracket.
  while (begin > 0 && kBrackets.find((*prompt)[begin - 1]) != std::string_view::npos) --begin;
  const std::string opening = prompt->substr(begin);
  if (trimmed(opening).empty()) return;
  openings_.push_back(opening);
  const auto past = try_render({}, Json::array({question, answer, more}), false);
  const size_t at = past ? past->find("A1") : std::string::npos;
  if (at == std::string::npos) return;
  const std::string_view before = std::string_view(*past).substr(0, at);
  if (before.ends_with(opening)) return;
  size_t bytes = 0, shared = 0;  // whole tokens: two markers may begin alike
  for (const TokenId token : tokenizer_->encode(opening)) {
    bytes += tokenizer_->token_bytes(token).size();
    if (bytes < opening.size() &&
        before.find(std::string_view(opening).substr(0, bytes)) != std::string::npos)
      shared = bytes;
  }
  while (shared > 0 && kBrackets.find(opening[shared - 1]) != std::string_view::npos) --shared;
  if (shared > 0) openings_.push_back(opening.substr(0, shared));
}

std::string ChatEncoder::render(const Conversation& conversation, Json messages, bool opens_answer,
                                std::vector<TextSpan>* generated) const {
  for (Json& message : messages) {
    message.erase("weight");
    if (message["role"] == "developer" && !knows_developer_) message["role"] = "system";
  }
  const Json no_tools = Json::array();
  Json variables = chat::chat_variables(format_, std::move(messages),
                                        conversation.tools.is_array() ? conversation.tools : no_tools);
  for (const auto& [key, value] : conversation.variables.items())
    if (key != "messages" && key != "tools") variables[key] = value;
  variables["add_generation_prompt"] = opens_answer;
  add_token_variables(*tokenizer_, variables);
  return template_->render(complete_chat_variables(std::move(variables)), now_, generated);
}

std::optional<std::string> ChatEncoder::try_render(const Conversation& conversation, Json messages,
                                                   bool opens_answer) const {
  try {
    return render(conversation, std::move(messages), opens_answer);
  } catch (const Error&) {
    return std::nullopt;
  }
}

size_t ChatEncoder::find_begin(const Conversation& conversation, const std::string& text, size_t message,
                               size_t after) const {
  const Json& messages = conversation.messages;
  const auto prompt = try_render(conversation, first_messages(messages, message), true);
  if (prompt && prompt->size() >= after && text.starts_with(*prompt)) return prompt->size();
  // What came before is written otherwise once it is past (thoughts are left out): where the text changes
  // with the answer, then back to what opens it.
  size_t changes = text.size();
  for (const char* other : {"A1", "Z1"}) {  // one of them begins otherwise than the answer
    Json changed = messages;
    if (!changed[message].contains("content") && !changed[message].contains("tool_calls"))
      changed[message]["content"] = "";
    replace_texts(changed[message], other);
    const auto rendered = try_render(conversation, std::move(changed), false);
    if (rendered) changes = std::min(changes, common_prefix(text, *rendered));
  }
  for (const std::string& opening : openings_) {
    const size_t at = changes == text.size()
                          ? text.find(opening, after)
                          : text.rfind(opening, changes - std::min(changes, opening.size()));
    if (at != std::string::npos && at >= after && at + opening.size() <= std::max(changes, after))
      return at + opening.size();
  }
  if (changes == text.size() || changes < after) {
    throw_error(
        ErrorKind::kUnsupported,
        "messages[{}]: where the chat template writes this answer cannot be found; mark it there with "
        "{{% generation %}}",
        message);
  }
  return changes;
}

ChatEncoder::Turn ChatEncoder::find_turn(const Conversation& conversation, const std::string& text,
                                         size_t message, size_t after) const {
  Turn turn;
  turn.begin = find_begin(conversation, text, message, after);
  turn.content_end = turn.begin;
  const Json& answer = conversation.messages[message];
  if (!answer.contains("tool_calls") && answer.contains("content")) {
    // Templates leave thoughts out, and spaces around.
    const std::string_view whole = answer["content"].get_ref<const std::string&>();
    const size_t thoughts = whole.rfind("</think>");
    const std::string_view shown =
        trimmed(thoughts == std::string_view::npos ? whole : whole.substr(thoughts + 8));
    const size_t at = text.find(shown, turn.begin);
    if (at != std::string::npos) turn.content_end = at + shown.size();
  }
  turn.bound = text.size();
  turn.is_bounded = message + 1 == conversation.messages.size();
  if (turn.is_bounded) return turn;
  const auto until = try_render(conversation, first_messages(conversation.messages, message + 1), false);
  const size_t bound = until ? common_prefix(text, *until) : 0;
  // Short of the end of both where the last answer is written otherwise than earlier ones.
  if (bound > turn.content_end && (turn.content_end > turn.begin || bound == until->size())) {
    turn.bound = bound;
    turn.is_bounded = true;
  }
  return turn;
}

Document ChatEncoder::encode(const Conversation& conversation) const {
  const Json& messages = conversation.messages;
  std::vector<size_t> answers;
  size_t learned = 0;
  const auto is_learned = [&](size_t message) {
    return message >= conversation.prompt && messages[message].value("weight", 1) != 0;
  };
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i]["role"] != "assistant") continue;
    answers.push_back(i);
    learned += is_learned(i) ? 1 : 0;
  }
  if (learned == 0)
    throw_error(ErrorKind::kInvalidInput, "there is no message of the assistant to learn from");
  std::vector<TextSpan> marked;
  const std::string text = render(conversation, messages, false, &marked);
  if (text.size() * learned > kMostWork) {
    throw_error(ErrorKind::kTooLarge, "{} answers in a text of {} bytes are too much for one conversation",
                learned, text.size());
  }
  Document document;
  document.whole = true;
  document.tokens = encode_rendered_chat(*tokenizer_, text);
  document.learned.resize(document.tokens.size());
  const std::optional<TokenId> bos = tokenizer_->bos();
  const bool adds_bos = !document.tokens.empty() && bos == document.tokens.front() &&
                        !text.starts_with(tokenizer_->token_bytes(*bos));
  const std::span<const TokenId> tokens = std::span(document.tokens).subspan(adds_bos ? 1 : 0);
  const size_t first = adds_bos ? 1 : 0;
  const TokenPlaces places(*tokenizer_, text, tokens);
  const auto learn = [&](size_t begin, size_t end) {
    for (size_t token = begin; token < end; ++token) document.learned[first + token] = true;
  };
  if (marked.size() == answers.size() || (!marked.empty() && learned == answers.size())) {
    for (size_t i = 0; i < marked.size(); ++i)
      if (marked[i].begin < marked[i].end && (marked.size() != answers.size() || is_learned(answers[i])))
        learn(places.holding(marked[i].begin), places.first_from(marked[i].end));
    return document;
  }
  size_t after = 0;
  for (const size_t message : answers) {
    if (!is_learned(message)) continue;
    const Turn turn = find_turn(conversation, text, message, after);
    const size_t bound = places.first_from(turn.bound);
    size_t end = places.first_from(turn.content_end);
    while (end < bound && !std::ranges::binary_search(end_tokens_, tokens[end])) ++end;
    if (end < bound) {
      ++end;  // the token that ends the turn is the last to be learnt
    } else {
      const size_t stop = turn.is_bounded ? turn.bound : turn.content_end;
      const std::string_view written = std::string_view(text).substr(turn.begin, stop - turn.begin);
      const size_t last = written.find_last_not_of(kSpaces);
      end = places.first_from(turn.begin + (last == std::string_view::npos ? 0 : last + 1));
    }
    learn(places.holding(turn.begin), end);
    after = turn.content_end;
  }
  return document;
}

std::vector<int32_t> ChatEncoder::encode_prompt(const Conversation& conversation) const {
  return encode_rendered_chat(*tokenizer_, render(conversation, conversation.messages, true));
}

std::vector<Document> ChatDocuments::make(const Row& row) {
  if (row.json.is_object() && (row.json.contains("text") || row.json.contains("tokens")))
    return plain_.make(row);
  return {encoder_.encode(read_conversation(row.json))};
}

}  // namespace qiao::train
