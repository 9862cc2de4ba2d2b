#include "train/tool_turns.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/quote.h"

namespace qiao::train {
namespace {

constexpr size_t kMostToolsBytes = size_t{4} << 20;

// {"id", "name", "arguments"} as a message has it.
Json as_tool_call(const Json& call) {
  return {{"id", call["id"]},
          {"type", "function"},
          {"function", {{"name", call["name"]}, {"arguments", call["arguments"]}}}};
}

}  // namespace

Json read_tools_file(const std::filesystem::path& path) {
  const std::string source = path.string();
  Json tools = parse_json(read_regular_file(path, kMostToolsBytes), source);
  if (!tools.is_array() || tools.empty())
    throw_error(ErrorKind::kInvalidInput, "{}: a list of tools was expected", source);
  for (size_t i = 0; i < tools.size(); ++i) {
    const Json& tool = tools[i];
    const auto function = tool.is_object() ? tool.find("function") : tool.end();
    const bool whole = tool.is_object() && function != tool.end() && function->is_object() &&
                       function->contains("name") && (*function)["name"].is_string() &&
                       (!function->contains("parameters") || (*function)["parameters"].is_object());
    if (!whole) {
      throw_error(
          ErrorKind::kInvalidInput,
          R"({}: tool {}: {{"type": "function", "function": {{"name", "description", "parameters"}}}} was )"
          "expected",
          source, i);
    }
  }
  return tools;
}

ToolTurns::ToolTurns(const LanguageModel& model, Json tools) : model_(model), tools_(std::move(tools)) {
  if (model.chat_template() != nullptr) format_ = chat::detect_chat_format(model.chat_template()->source());
  for (TokenId id = 0; id < model.decoder().config().vocabulary_size; ++id)
    if (model.ends_generation(id)) end_tokens_.push_back(id);
  if (tools_.empty()) return;
  // A conversation of one call shows whether this template can be gone on with.
  const Json call = {
      {"id", "call_0"}, {"name", tools_[0]["function"]["name"]}, {"arguments", Json::object()}};
  const Json answer = {
      {"role", "assistant"}, {"content", ""}, {"tool_calls", Json::array({as_tool_call(call)})}};
  const Json result = {{"role", "tool"},
                       {"content", "0"},
                       {"tool_call_id", "call_0"},
                       {"name", tools_[0]["function"]["name"]}};
  const Json messages = Json::array({{{"role", "user"}, {"content", "0"}}});
  if (!end_tokens_.empty())
    text_behind(messages, answer, Json::array({result}), end_tokens_.front(), Json::object());
}

std::string ToolTurns::render(const Json& messages, const Json& variables, bool opens_answer) const {
  Json all = variables;
  all.update(chat::chat_variables(format_, messages, tools_));
  all["add_generation_prompt"] = opens_answer;
  return model_.render_chat(std::move(all));
}

std::string ToolTurns::render_prompt(const Json& messages, const Json& variables) const {
  return render(messages, variables, true);
}

ToolTurns::Answer ToolTurns::read_answer(const std::vector<TokenId>& drawn, std::string_view prompt,
                                         int64_t first_call) const {
  // Calls are written with control tokens.
  StreamDecoder decoder(model_.tokenizer(), /*skip_special=*/false);
  chat::ChatParser parser(format_, tools_, chat::thoughts_after(format_, prompt));
  std::vector<chat::ChatEvent> events;
  for (const TokenId id : drawn) parser.push(decoder.push(id), events);
  parser.push(decoder.finish(), events);
  parser.finish(events);

  Answer answer;
  std::string content, thoughts;
  std::vector<std::pair<std::string, std::string>> calls;  // name, arguments
  for (chat::ChatEvent& event : events) {
    switch (event.kind) {
      case chat::ChatEvent::Kind::kReasoning:
        thoughts += event.text;
        break;
      case chat::ChatEvent::Kind::kText:
        content += event.text;
        break;
      case chat::ChatEvent::Kind::kToolCall:
        calls.emplace_back(event.name, "");
        break;
      case chat::ChatEvent::Kind::kToolArguments:
        calls.back().second += event.text;
        break;
    }
  }
  answer.message = {{"role", "assistant"}, {"content", content}};
  if (!thoughts.empty()) answer.message["reasoning_content"] = thoughts;
  for (const auto& [name, text] : calls) {
    Json arguments;
    try {
      arguments = text.empty() ? Json::object() : parse_json(text, "arguments");
    } catch (const Error&) {
      arguments = nullptr;
    }
    if (!arguments.is_object()) {  // cut off: nothing that can be called
      answer.calls = Json::array();
      break;
    }
    answer.calls.push_back({{"id", fmt::format("call_{}", first_call + std::ssize(answer.calls))},
                            {"name", name},
                            {"arguments", std::move(arguments)}});
  }
  for (const Json& call : answer.calls) answer.message["tool_calls"].push_back(as_tool_call(call));
  return answer;
}

std::string ToolTurns::text_behind(const Json& messages, const Json& answer, const Json& results, TokenId end,
                                   const Json& variables) const {
  Json so_far = messages;
  so_far.push_back(answer);
  Json all = so_far;
  for (const Json& result : results) all.push_back(result);
  const std::string question = render(messages, variables, true), before = render(so_far, variables, false),
                    after = render(all, variables, true);
  if (!after.starts_with(before)) {
    throw_error(
        ErrorKind::kUnsupported,
        "chat template: it renders an answer otherwise once results of tools follow, so the tokens drawn "
        "cannot stay as they are");
  }
  // The model wrote its end itself: what follows that is the template's.
  const auto same = static_cast<size_t>(
      std::mismatch(question.begin(), question.end(), before.begin(), before.end()).first - question.begin());
  const auto find_end = [&](TokenId id) {
    const std::string text = model_.tokenizer().token_bytes(id);
    const size_t at = text.empty() ? std::string::npos : before.rfind(text);
    return at == std::string::npos || at < same ? std::string::npos : at + text.size();
  };
  size_t at = find_end(end);
  for (auto id = end_tokens_.begin(); id != end_tokens_.end() && at == std::string::npos; ++id)
    at = find_end(*id);
  if (at == std::string::npos) {
    throw_error(ErrorKind::kUnsupported,
                "chat template: it ends an answer with calls of tools by no token at which generation stops");
  }
  return after.substr(at);
}

}  // namespace qiao::train
