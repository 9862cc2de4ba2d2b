#include <optional>
#include <random>

#include "chat/argument_reader.h"
#include "chat/chat_format.h"
#include "chat/tool_schema.h"
#include "chat/unmarked_call.h"

namespace qiao::chat {
namespace {

// A call that has not reached its arguments this far behind its marker is text.
constexpr size_t kMaxHeadBytes = 64 << 10;
constexpr size_t kMaxNameBytes = 256;

std::string call_id() {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::string id = "call_";
  for (int i = 0; i < 24; ++i) id += kAlphabet[random() % kAlphabet.size()];
  return id;
}

size_t leading_space(std::string_view text) {
  size_t size = 0;
  while (size < text.size() && is_json_space(text[size])) ++size;
  return size;
}

size_t trailing_space(std::string_view text) {
  size_t size = 0;
  while (size < text.size() && is_json_space(text[text.size() - size - 1])) ++size;
  return size;
}

// Bytes at the end that are the beginning of a UTF-8 character.
size_t unfinished_character(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}

}  // namespace

struct ChatParser::State {
  // A call's head as it was matched: up to its arguments, or, where those stood before the name, all of it.
  struct Head {
    Match match = Match::kNo;
    size_t bytes = 0;
    std::string name;
    std::optional<std::string> arguments;
  };
  enum class Stage {
    kBegin,      // nothing but whitespace so far
    kThoughts,   // inside of them
    kText,       // of the answer
    kArguments,  // of a call
    kCallEnd,    // what closes a call
    kBetween,    // after a call: another, the end of all of them, or text
  };

  State(const ChatFormat& chat_format, const Json& tool_list, Thoughts where)
      : format(chat_format), form(format.form), tools(tool_list), thoughts(where) {
    if (thoughts == Thoughts::kOpen) {
      stage = Stage::kThoughts;
      skip_space = true;
    } else if (thoughts == Thoughts::kNone) {
      stage = Stage::kText;
    }
    if (format.unmarked_calls && form.body == CallForm::Body::kCallObject && !form.bare && !tools.empty())
      unmarked.emplace(form, tools);
  }

  ChatFormat format;
  CallForm form;
  Json tools;
  Thoughts thoughts;
  Stage stage = Stage::kBegin;
  std::string unfinished;   // bytes of a character that has not arrived in full
  std::string held;         // text that is not yet decided on
  bool skip_space = false;  // at the beginning of thoughts, and of the text behind them
  bool had_text = false;    // of the answer: a bare call can only be its beginning
  bool in_answer_tag = false;
  bool opened_all = false;  // begin_all has been read, end_all not yet
  bool final = false;
  int64_t calls = 0;
  Json parameters;  // of the call that is being read
  std::optional<ArgumentReader> reader;
  std::optional<UnmarkedCall> unmarked;  // while the answer may be one
  std::vector<ChatEvent>* events = nullptr;

  void emit(ChatEvent::Kind kind, std::string_view text) {
    if (text.empty()) return;
    if (kind == ChatEvent::Kind::kText) had_text = true;
    if (!events->empty() && events->back().kind == kind && kind != ChatEvent::Kind::kToolCall) {
      events->back().text += text;
    } else {
      events->push_back({kind, std::string(text), {}, {}});
    }
  }
  void emit_held(ChatEvent::Kind kind, size_t bytes) {
    emit(kind, std::string_view(held).substr(0, bytes));
    held.erase(0, bytes);
  }

  // Each returns whether it got further: false waits for more text.
  bool step();
  bool begin();
  bool think();
  bool text();
  bool unmarked_call();
  bool arguments();
  bool call_end();
  bool between();
  bool take_call(size_t at, Head head);
  Head head(std::string_view from, bool opened) const;
  void object_head(TextMatch& match, Head& found) const;
};

bool ChatParser::State::step() {
  switch (stage) {
    case Stage::kBegin:
      return begin();
    case Stage::kThoughts:
      return think();
    case Stage::kText:
      return text();
    case Stage::kArguments:
      return arguments();
    case Stage::kCallEnd:
      return call_end();
    case Stage::kBetween:
      return between();
  }
  return false;
}

bool ChatParser::State::begin() {
  TextMatch match(held);
  match.space();
  match.marker(format.think_begin);
  if (match.result() == Match::kMore && !final) return false;
  stage = match.ok() ? Stage::kThoughts : Stage::kText;
  skip_space = match.ok();
  if (match.ok()) held.erase(0, match.at());
  return true;
}

bool ChatParser::State::think() {
  if (skip_space) {
    held.erase(0, leading_space(held));
    if (held.empty()) return false;
    skip_space = false;
  }
  const size_t end = held.find(format.think_end);
  if (end == std::string::npos) {
    // The whitespace before the end is no thought.
    size_t keep = final ? 0 : marker_tail(held, format.think_end);
    if (!final) keep += trailing_space(std::string_view(held).substr(0, held.size() - keep));
    emit_held(ChatEvent::Kind::kReasoning, held.size() - keep);
    return false;
  }
  emit(ChatEvent::Kind::kReasoning,
       std::string_view(held).substr(0, end - trailing_space(std::string_view(held).substr(0, end))));
  held.erase(0, end + format.think_end.size());
  stage = Stage::kText;
  skip_space = true;
  return true;
}

bool ChatParser::State::text() {
  if (skip_space) {
    held.erase(0, leading_space(held));
    if (held.empty()) return false;
    if (!format.answer_begin.empty() && !in_answer_tag) {
      TextMatch match(held);
      match.literal(format.answer_begin);
      if (match.result() == Match::kMore && !final) return false;
      if (match.ok()) {
        held.erase(0, match.at());
        in_answer_tag = true;
        return true;
      }
    }
    skip_space = false;
  }
  if (held.empty()) return false;
  if (in_answer_tag) {
    const size_t end = held.find(format.answer_end);
    size_t keep = end == std::string::npos ? marker_tail(held, format.answer_end) : 0;
    if (final) keep = 0;
    size_t size = end == std::string::npos ? held.size() - keep : end;
    if (!final || end != std::string::npos) size -= trailing_space(std::string_view(held).substr(0, size));
    emit_held(ChatEvent::Kind::kText, size);
    if (end == std::string::npos) return false;
    held.erase(0, held.find(format.answer_end) + format.answer_end.size());
    in_answer_tag = false;
    skip_space = true;
    return true;
  }
  if (tools.empty()) {
    emit_held(ChatEvent::Kind::kText, held.size());
    return false;
  }
  if (unmarked) return unmarked_call();
  if (form.bare) {
    if (!had_text) {
      const Head found = head(held, false);
      if (found.match == Match::kMore && !final) return false;
      if (found.match == Match::kYes) return take_call(0, found);
    }
    emit_held(ChatEvent::Kind::kText, held.size());
    return false;
  }
  const std::string_view marker = form.marker();
  const size_t at = held.find(marker);
  if (at != std::string::npos) {
    const Head found = head(std::string_view(held).substr(at), false);
    const size_t space = trailing_space(std::string_view(held).substr(0, at));
    if (found.match == Match::kYes) {
      emit_held(ChatEvent::Kind::kText, at - space);
      return take_call(space, found);
    }
    if (found.match == Match::kMore && !final) {
      emit_held(ChatEvent::Kind::kText, at - space);
      return false;
    }
    emit_held(ChatEvent::Kind::kText, at + marker.size());
    return true;
  }
  // Whitespace before a call is not text; nor is what ends an answer of calls.
  size_t keep = final ? 0 : marker_tail(held, marker);
  if (!final || (calls > 0 && leading_space(held) == held.size()))
    keep += trailing_space(std::string_view(held).substr(0, held.size() - keep));
  emit_held(ChatEvent::Kind::kText, held.size() - keep);
  return false;
}

// At the answer's beginning, and after such a call.
bool ChatParser::State::unmarked_call() {
  const Match match = unmarked->read(held, final);
  if (match == Match::kMore) return false;
  if (match == Match::kNo) {
    unmarked.reset();
    return true;
  }
  ++calls;
  events->push_back({ChatEvent::Kind::kToolCall, {}, call_id(), unmarked->name()});
  emit(ChatEvent::Kind::kToolArguments, unmarked->arguments());
  held.erase(0, unmarked->bytes());
  skip_space = true;
  unmarked.reset();
  if (format.several_calls) unmarked.emplace(form, tools);
  return true;
}

// The object {"name": …, "arguments": …} from its bracket up to the arguments'.
void ChatParser::State::object_head(TextMatch& match, Head& found) const {
  match.literal("{");
  bool first = true;
  while (match.ok()) {
    match.space();
    if (match.peek() == '}') {  // all of the object: the arguments stood before the name, or nowhere
      if (found.name.empty()) return match.fail();
      if (!found.arguments) found.arguments = "{}";
      return;
    }
    if (!std::exchange(first, false)) match.literal(",");
    match.space();
    const std::string key = match.json_string();
    match.space();
    match.literal(":");
    match.space();
    if (key == "name") {
      found.name = match.json_string();
    } else if (key == form.arguments_key || key == "arguments" || key == "parameters") {
      if (match.peek() == 0) return;
      if (match.peek() != '{') return match.fail();
      if (!found.name.empty()) return;
      found.arguments = std::string(match.json_value());
    } else {
      match.json_value();
    }
  }
}

ChatParser::State::Head ChatParser::State::head(std::string_view from, bool opened) const {
  Head found;
  TextMatch match(from);
  if (!opened && !form.begin_all.empty()) {
    match.marker(form.begin_all);
    match.space();
  }
  if (form.bare) {
    match.space();
    TextMatch tag(from.substr(match.at()));
    tag.literal("<|python_tag|>");
    if (tag.result() == Match::kMore) {
      found.match = Match::kMore;
      return found;
    }
    if (tag.ok()) match.literal("<|python_tag|>");
    match.space();
  }
  const bool object = form.body == CallForm::Body::kCallObject || form.body == CallForm::Body::kCallList;
  if (form.body == CallForm::Body::kCallList && !opened) match.literal("[");
  if (form.body == CallForm::Body::kCallList) match.space();
  match.marker(form.begin);
  if (object) {
    match.space();
    object_head(match, found);
  } else {
    match.space();
    found.name = match.word(kMaxNameBytes);
    if (form.name_end == "[ARGS]") {  // some versions write the call's id before
      TextMatch id(from.substr(std::min(match.at(), from.size())));
      id.literal("[CALL_ID]");
      if (match.ok() && id.result() == Match::kMore) {
        found.match = Match::kMore;
        return found;
      }
      if (match.ok() && id.ok()) {
        match.literal("[CALL_ID]");
        match.word(kMaxNameBytes);
      }
    }
    match.marker(form.name_end);
    if (form.body != CallForm::Body::kTags) {
      match.space();
      if (match.peek() != '{' && match.ok()) match.fail();
    }
  }
  found.match = match.result();
  found.bytes = match.at();
  if (found.match == Match::kYes && find_function(tools, found.name) == nullptr) found.match = Match::kNo;
  if (found.match == Match::kMore && from.size() > kMaxHeadBytes) found.match = Match::kNo;
  return found;
}

// The call whose head stands `at` bytes into what is held; what precedes it is dropped.
bool ChatParser::State::take_call(size_t at, Head found) {
  held.erase(0, at + found.bytes);
  opened_all = true;
  ++calls;
  events->push_back({ChatEvent::Kind::kToolCall, {}, call_id(), found.name});
  if (found.arguments) {
    emit(ChatEvent::Kind::kToolArguments, *found.arguments);
    stage = Stage::kCallEnd;
    return true;
  }
  parameters = parameters_of(*find_function(tools, found.name));
  reader.emplace(form, parameters);
  stage = Stage::kArguments;
  return true;
}

bool ChatParser::State::arguments() {
  std::string out;
  const Match match = reader->read(held, out);
  emit(ChatEvent::Kind::kToolArguments, out);
  if (match == Match::kMore) {
    if (final) held.clear();  // half a marker
    return false;
  }
  if (match == Match::kNo) {
    stage = Stage::kText;
  } else {
    stage = form.body == CallForm::Body::kTags ? Stage::kBetween : Stage::kCallEnd;
  }
  return true;
}

bool ChatParser::State::call_end() {
  TextMatch match(held);
  if (form.body == CallForm::Body::kCallObject || form.body == CallForm::Body::kCallList) {
    match.space();
    while (match.peek() == ',') {  // "id" behind the arguments
      match.literal(",");
      match.space();
      match.json_string();
      match.space();
      match.literal(":");
      match.space();
      match.json_value();
      match.space();
    }
    match.literal("}");
  }
  if (!form.end.empty()) {  // else the whitespace is of what follows
    match.space();
    match.marker(form.end.substr(leading_space(form.end)));
  }
  if (match.result() == Match::kMore) {
    if (final) held.clear();
    return false;
  }
  stage = match.ok() ? Stage::kBetween : Stage::kText;
  if (match.ok()) held.erase(0, match.at());
  return true;
}

bool ChatParser::State::between() {
  const size_t space = leading_space(held);
  const std::string_view rest = std::string_view(held).substr(space);
  if (rest.empty()) {
    if (final) held.clear();
    return false;
  }
  bool more = false;
  if (opened_all && (!form.end_all.empty() || form.body == CallForm::Body::kCallList)) {
    TextMatch end(rest);
    if (form.body == CallForm::Body::kCallList) end.literal("]");
    end.space();
    end.marker(form.end_all.substr(leading_space(form.end_all)));
    if (end.ok()) {
      held.erase(0, space + end.at());
      opened_all = false;
      skip_space = true;
      stage = Stage::kText;
      return true;
    }
    more |= end.result() == Match::kMore;
  }
  std::string_view separator = form.separator;
  while (!separator.empty() && is_json_space(separator.back())) separator.remove_suffix(1);
  TextMatch gap(rest);
  gap.marker(separator);
  gap.space();
  more |= gap.result() == Match::kMore;
  if (gap.ok()) {
    // A second block of calls is as good as a second call of the block.
    for (const bool opened : {true, false}) {
      const Head found = head(rest.substr(gap.at()), opened);
      if (found.match == Match::kYes) return take_call(space + gap.at(), found);
      more |= found.match == Match::kMore;
    }
  }
  if (more && !final) return false;
  if (more && final && form.body == CallForm::Body::kCallList) {
    held.clear();
    return false;
  }
  stage = Stage::kText;
  skip_space = false;
  return true;
}

ChatParser::ChatParser(const ChatFormat& format, const Json& tools, Thoughts thoughts)
    : state_(std::make_unique<State>(format, tools, thoughts)) {}
ChatParser::ChatParser(ChatParser&&) noexcept = default;
ChatParser::~ChatParser() = default;

void ChatParser::push(std::string_view text, std::vector<ChatEvent>& events) {
  state_->events = &events;
  state_->unfinished += text;
  const size_t whole = state_->unfinished.size() - unfinished_character(state_->unfinished);
  state_->held.append(state_->unfinished, 0, whole);
  state_->unfinished.erase(0, whole);
  while (state_->step()) {
  }
}

void ChatParser::finish(std::vector<ChatEvent>& events) {
  state_->events = &events;
  state_->held += std::exchange(state_->unfinished, {});
  state_->final = true;
  while (state_->step()) {
  }
}

int64_t ChatParser::tool_calls() const { return state_->calls; }
bool ChatParser::in_thoughts() const { return state_->stage == State::Stage::kThoughts; }

}  // namespace qiao::chat
