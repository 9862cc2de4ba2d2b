#include "chat/unmarked_call.h"

#include <vector>

#include "base/error.h"
#include "chat/tool_schema.h"
#include "constrain/constraint.h"

namespace qiao::chat {
namespace {

constexpr size_t kMaxSpaceBefore = 64;
constexpr std::string_view kFence = "```";

// Whether the text goes on with one of `words`, none of which begins another.
template <typename Words>
Match match_any(std::string_view text, const Words& words) {
  Match best = Match::kNo;
  for (const std::string_view word : words) {
    TextMatch match(text);
    match.literal(word);
    if (match.ok()) return Match::kYes;
    if (match.result() == Match::kMore) best = Match::kMore;
  }
  return best;
}

bool is_valid(const Json& parameters, std::string_view arguments) {
  try {
    constrain::ConstraintState state(constrain::compile_json_schema(parameters, "parameters"));
    return state.accept_bytes(arguments) == arguments.size() && state.can_end();
  } catch (const Error&) {  // over a limit: not known to be valid
    return false;
  }
}

}  // namespace

Match UnmarkedCall::read(std::string_view text, bool final) {
  if (at_ == At::kHead) {
    const Match head = read_head(text);
    if (head != Match::kYes) return final ? Match::kNo : head;
    at_ = At::kObject;
  }
  if (at_ == At::kObject) {
    end_ += json_.take(text.substr(end_));
    if (!json_.done()) return final ? Match::kNo : Match::kMore;
    if (!read_object(text.substr(begin_, end_ - begin_))) return Match::kNo;
    at_ = At::kEnd;
  }
  return read_end(text, final);
}

// Up to the name, or the word "arguments" where that comes first: what is none is let go of at once.
Match UnmarkedCall::read_head(std::string_view text) {
  TextMatch match(text);
  match.space();
  if (match.at() > kMaxSpaceBefore) return Match::kNo;
  if (match.peek() == '`') {
    match.literal(kFence);
    if (!match.ok()) return match.result();
    TextMatch language(text.substr(match.at()));
    language.literal("json");
    if (language.result() == Match::kMore) return Match::kMore;
    if (language.ok()) match.literal("json");
    fenced_ = true;
    const size_t before = match.at();
    match.space();
    if (match.at() - before > kMaxSpaceBefore) return Match::kNo;
  }
  begin_ = end_ = match.at();
  match.literal("{");
  match.space();
  if (match.at() - begin_ > kMaxSpaceBefore) return Match::kNo;
  if (!match.ok()) return match.result();
  const std::string_view rest = text.substr(match.at());
  const std::string name = "\"name\"", arguments = dump_json(Json(form_.arguments_key));
  const Match key = match_any(rest, std::vector<std::string_view>{name, arguments});
  if (key != Match::kYes || rest.starts_with(arguments)) return key;
  match.literal(name);
  match.space();
  match.literal(":");
  match.space();
  if (match.at() - begin_ > 2 * kMaxSpaceBefore) return Match::kNo;
  if (!match.ok()) return match.result();
  std::vector<std::string> names;
  for (const Json& tool : tools_) names.push_back(dump_json(tool["function"]["name"]));
  return match_any(text.substr(match.at()), names);
}

bool UnmarkedCall::read_object(std::string_view object) {
  try {
    const Json call = parse_json(object, "");
    if (!call.is_object() || call.size() != 2) return false;
    const auto name = call.find("name"), values = call.find(form_.arguments_key);
    if (name == call.end() || values == call.end() || !name->is_string() || !values->is_object())
      return false;
    name_ = name->get<std::string>();
  } catch (const Error&) {
    return false;
  }
  TextMatch match(object);  // the text of the arguments: JSON, as has been seen
  match.literal("{");
  while (match.ok() && match.peek() != '}') {
    match.space();
    const std::string key = match.json_string();
    match.space();
    match.literal(":");
    match.space();
    const std::string_view value = match.json_value();
    if (key == form_.arguments_key) arguments_ = value;
    match.space();
    if (match.peek() == ',') match.literal(",");
  }
  const Json* function = find_function(tools_, name_);
  return function != nullptr && is_valid(parameters_of(*function), arguments_);
}

Match UnmarkedCall::read_end(std::string_view text, bool final) {
  TextMatch match(text.substr(end_));
  if (fenced_) {
    match.space();
    match.literal(kFence);
    if (match.result() == Match::kNo) return Match::kNo;
    if (!match.ok()) {
      bytes_ = text.size();  // an answer may well end without closing its fence
      return final ? Match::kYes : Match::kMore;
    }
  }
  size_t at = end_ + match.at();
  while (at < text.size() && (text[at] == ' ' || text[at] == '\t' || text[at] == '\r')) ++at;
  if (at == text.size() && !final) return Match::kMore;
  if (at < text.size() && text[at] != '\n') return Match::kNo;
  bytes_ = at;
  return Match::kYes;
}

}  // namespace qiao::chat
