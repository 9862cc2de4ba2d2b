#include <algorithm>
#include <array>
#include <optional>

#include "base/error.h"
#include "chat/chat_format.h"
#include "text/chat_template.h"
#include "text/chat_variables.h"

namespace qiao::chat {
namespace {

// What the probing conversations say: words that no template has.
constexpr std::string_view kTool = "probe_tool";
constexpr std::string_view kUser = "Probe question?";
constexpr std::string_view kThought = "Probe thought.";
constexpr std::string_view kAnswer = "Probe answer.";

// Renders, or nothing where the template refuses.
class Probe {
 public:
  explicit Probe(std::string_view source) {
    try {
      template_.emplace(source, "chat template");
    } catch (const Error&) {
    }
  }
  std::optional<std::string> render(Json messages, bool tools) const {
    if (!template_) return std::nullopt;
    Json variables = {{"messages", std::move(messages)}, {"bos_token", "<s>"}, {"eos_token", "</s>"}};
    if (tools) {
      variables["tools"] =
          Json::array({{{"type", "function"},
                        {"function",
                         {{"name", kTool},
                          {"description", "A probe."},
                          {"parameters",
                           {{"type", "object"},
                            {"properties",
                             {{"probe_text", {{"type", "string"}, {"description", "A text."}}},
                              {"probe_number", {{"type", "integer"}, {"description", "A number."}}}}},
                            {"required", {"probe_text"}}}}}}}});
    }
    try {
      return template_->render(complete_chat_variables(std::move(variables)), 0);
    } catch (const Error&) {
      return std::nullopt;
    }
  }

 private:
  std::optional<ChatTemplate> template_;
};

Json user_message() { return {{"role", "user"}, {"content", kUser}}; }

Json call_json(bool as_text, const char* id) {
  const Json arguments = {{"probe_text", "probe words"}, {"probe_number", 70417}};
  return {{"id", id},
          {"type", "function"},
          {"function", {{"name", kTool}, {"arguments", as_text ? Json(dump_json(arguments)) : arguments}}}};
}

// What follows the last user message. Calls are searched for there only: what explains them stands before.
std::string_view answer_part(std::string_view rendered) {
  const size_t at = rendered.rfind(kUser);
  return at == std::string_view::npos ? rendered : rendered.substr(at + kUser.size());
}

// A way of giving the template a call that it renders, its arguments included, with a list of tools or
// without.
bool find_call_style(const Probe& probe, bool tools, ChatFormat& format, std::string& rendered) {
  for (const bool null_content : {false, true}) {
    for (const bool as_text : {false, true}) {
      Json message = {{"role", "assistant"},
                      {"content", null_content ? Json(nullptr) : Json("")},
                      {"tool_calls", Json::array({call_json(as_text, "prbcall01")})}};
      const auto text = probe.render(Json::array({user_message(), std::move(message)}), tools);
      if (!text) continue;
      const std::string_view part = answer_part(*text);
      if (part.find(kTool) == std::string_view::npos || part.find("probe words") == std::string_view::npos ||
          part.find("70417") == std::string_view::npos ||
          part.find("\\\"probe_text") != std::string_view::npos)
        continue;
      format.null_content = null_content;
      format.arguments_as_text = as_text;
      rendered = part;
      return true;
    }
  }
  return false;
}

// The text of `part` from the end of `from` to the beginning of `to`.
std::string between(std::string_view part, std::string_view from, std::string_view to) {
  const size_t begin = part.find(from);
  if (begin == std::string_view::npos) return {};
  const size_t end = part.find(to, begin + from.size());
  if (end == std::string_view::npos) return {};
  return std::string(part.substr(begin + from.size(), end - begin - from.size()));
}

// The line break that the template writes after `marker`, if it does.
std::string break_after(std::string_view part, std::string_view marker) {
  const size_t at = part.find(marker);
  return at != std::string_view::npos && part.substr(at + marker.size()).starts_with('\n') ? "\n" : "";
}

std::string break_before(std::string_view part, std::string_view marker) {
  const size_t at = part.find(marker);
  return at != std::string_view::npos && at > 0 && part[at - 1] == '\n' ? "\n" : "";
}

bool contains(std::string_view text, std::string_view what) {
  return text.find(what) != std::string_view::npos;
}

CallForm hermes_form() {
  CallForm form;
  form.begin = "<tool_call>\n";
  form.separator = "\n";
  form.end = "\n</tool_call>";
  return form;
}

void read_deepseek(std::string_view part, ChatFormat& format) {
  CallForm& form = format.form;
  form = {};
  format.tools = ToolSyntax::kDeepSeek;
  if (contains(part, "｜DSML｜")) {  // V3.2 and later: their block is named function_calls or tool_calls
    const std::string block = between(part, "<｜DSML｜", ">");
    form.body = CallForm::Body::kTags;
    form.begin_all = "<｜DSML｜" + block + ">\n";
    form.begin = "<｜DSML｜invoke name=\"";
    form.name_end = "\">\n";
    form.key_begin = "<｜DSML｜parameter name=\"";
    form.key_end = "\" string=\"false\">";
    form.text_key_end = "\" string=\"true\">";
    form.value_end = "</｜DSML｜parameter>\n";
    form.end = "</｜DSML｜invoke>\n";
    form.end_all = "</｜DSML｜" + block + ">";
    return;
  }
  form.body = CallForm::Body::kJson;
  form.begin_all = "<｜tool▁calls▁begin｜>";
  form.begin = "<｜tool▁call▁begin｜>";
  form.end_all = "<｜tool▁calls▁end｜>";
  if (contains(part, std::string(kTool) + "<｜tool▁sep｜>")) {  // V3.1
    form.name_end = "<｜tool▁sep｜>";
    form.end = "<｜tool▁call▁end｜>";
  } else {  // V2.5, V3, R1
    form.begin += "function<｜tool▁sep｜>";
    form.name_end = "\n```json\n";
    form.end = "\n```<｜tool▁call▁end｜>";
    form.separator = "\n";
  }
}

void read_mistral(std::string_view part, ChatFormat& format) {
  CallForm& form = format.form;
  form = {};
  format.tools = ToolSyntax::kMistral;
  const size_t at = part.find("[TOOL_CALLS]") + std::string_view("[TOOL_CALLS]").size();
  if (const size_t next = part.find_first_not_of(" \n", at);
      next != std::string_view::npos && part[next] == '[') {
    form.body = CallForm::Body::kCallList;
    form.begin_all = "[TOOL_CALLS]" + std::string(part.substr(at, next - at));
    form.separator = ", ";
  } else {
    form.body = CallForm::Body::kJson;
    form.begin = "[TOOL_CALLS]";
    form.name_end = contains(part, "[ARGS]") ? "[ARGS]" : "";
  }
}

// GLM's <tool_call>NAME<arg_key>…, and Hunyuan's newer form, which has a block around, a separator behind the
// name and in some models a suffix in each tag.
void read_arg_tags(std::string_view part, ChatFormat& format) {
  CallForm& form = format.form;
  form = {};
  form.body = CallForm::Body::kTags;
  const std::string suffix = between(part, "<arg_key", ">");
  const auto tag = [&](const char* name) { return fmt::format("<{}{}>", name, suffix); };
  const std::string line = break_before(part, tag("arg_key"));
  form.begin = tag("tool_call");
  form.name_end = line;
  form.key_begin = tag("arg_key");
  form.key_end = tag("/arg_key") + break_after(part, tag("/arg_key")) + tag("arg_value");
  form.value_end = tag("/arg_value") + line;
  form.end = tag("/tool_call");
  form.separator = line;
  format.tools = ToolSyntax::kGlm;
  if (contains(part, tag("tool_calls"))) {
    format.tools = ToolSyntax::kHunyuan;
    form.name_end = tag("tool_sep") + line;
    form.begin_all = tag("tool_calls") + line;
    form.end_all = line + tag("/tool_calls");
  }
}

void read_qwen_coder(std::string_view part, ChatFormat& format) {
  CallForm& form = format.form;
  form = {};
  format.tools = ToolSyntax::kQwenCoder;
  form.body = CallForm::Body::kTags;
  form.begin = "<tool_call>" + break_after(part, "<tool_call>") + "<function=";
  form.name_end = ">" + break_after(part, fmt::format("<function={}>", kTool));
  form.key_begin = "<parameter=";
  form.key_end = ">" + break_after(part, "<parameter=probe_text>");
  form.value_end = break_before(part, "</parameter>") + "</parameter>" + break_after(part, "</parameter>");
  form.end = "</function>" + break_after(part, "</function>") + "</tool_call>";
  form.separator = "\n";
}

void read_gemma(std::string_view begin, std::string_view end, std::string_view quote, ChatFormat& format) {
  format.tools = ToolSyntax::kGemma;
  format.form = {};
  format.form.body = CallForm::Body::kGemma;
  format.form.begin = fmt::format("{}call:", begin);
  format.form.end = end;
  format.form.quote = quote;
}

// `part` holds one call of the probe's tool.
void read_form(std::string_view part, ChatFormat& format) {
  const std::string name(kTool);
  CallForm& form = format.form;
  if (contains(part, "｜DSML｜") || contains(part, "<｜tool▁call▁begin｜>"))
    return read_deepseek(part, format);
  if (contains(part, "[TOOL_CALLS]")) return read_mistral(part, format);
  if (contains(part, "<|tool_call>call:" + name))
    return read_gemma("<|tool_call>", "<tool_call|>", "<|\"|>", format);
  if (contains(part, "<start_function_call>call:" + name))
    return read_gemma("<start_function_call>", "<end_function_call>", "<escape>", format);
  if (contains(part, "<tool_call") && contains(part, "<arg_key")) return read_arg_tags(part, format);
  if (contains(part, "<tool_call>") && contains(part, "<function=" + name + ">") &&
      contains(part, "<parameter=probe_text>"))
    return read_qwen_coder(part, format);
  if (contains(part, "<tool_calls>") && contains(part, "```json")) {
    format.tools = ToolSyntax::kHunyuan;
    form = {};
    form.body = CallForm::Body::kJson;
    form.begin_all = "<tool_calls>" + break_after(part, "<tool_calls>");
    form.begin = "<tool_call>";
    form.name_end = break_before(part, "```json") + "```json" + break_after(part, "```json");
    form.end = "\n```" + break_before(part, "</tool_call>") + "</tool_call>";
    form.separator = break_after(part, "</tool_call>");
    form.end_all = break_before(part, "</tool_calls>") + "</tool_calls>";
    return;
  }
  const bool list = contains(part, "[{\"name\": \"" + name) || contains(part, "[{\"arguments\"");
  if (contains(part, "<tool_calls>") && list) {
    format.tools = ToolSyntax::kHunyuan;
    form = {};
    form.body = CallForm::Body::kCallList;
    form.begin_all = "<tool_calls>";
    form.end_all = "</tool_calls>";
    form.separator = ", ";
    return;
  }
  if (contains(part, "<tool_call>") && contains(part, "\"name\":")) {
    format.tools = ToolSyntax::kHermes;
    form = hermes_form();
    form.begin = "<tool_call>" + break_after(part, "<tool_call>");
    form.end = break_before(part, "</tool_call>") + "</tool_call>";
    if (contains(part, "\"parameters\":")) form.arguments_key = "parameters";
    return;
  }
  if (contains(part, "{\"name\": \"" + name + "\", \"parameters\":")) {
    format.tools = ToolSyntax::kLlama3;
    form = {};
    form.bare = true;
    form.arguments_key = "parameters";
    form.separator = "; ";
  }
}

// Thoughts stand between one of these pairs; names may have a suffix (":opensource").
void read_thoughts(const Probe& probe, std::string_view source, ChatFormat& format) {
  Json message = {{"role", "assistant"}, {"content", kAnswer}, {"reasoning_content", kThought}};
  std::string rendered;
  if (auto text = probe.render(Json::array({user_message(), std::move(message)}), false))
    rendered = answer_part(*text);
  constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kPairs = {{
      {"<seed:think>", "</seed:think>"},
      {"[THINK]", "[/THINK]"},
      {"<|channel>thought\n", "<channel|>"},
      {"<think>", "</think>"},
  }};
  for (const std::string_view text : {std::string_view(rendered), source}) {
    for (const auto& [begin, end] : kPairs) {
      std::string_view bare = begin;
      if (bare.ends_with('\n')) bare.remove_suffix(1);
      if (!contains(text, bare) && !contains(text, end)) continue;
      format.think_begin = begin;
      format.think_end = end;
      if (contains(source, "<answer>") && contains(source, "</answer>") && begin == "<think>") {
        format.answer_begin = "<answer>";
        format.answer_end = "</answer>";
      }
      return;
    }
    if (const std::string name = between(text, "<think:", ">");
        !name.empty() && name.size() < 40 && !contains(name, "\n")) {
      format.think_begin = "<think:" + name + ">";
      format.think_end = "</think:" + name + ">";
      return;
    }
  }
}

}  // namespace

ChatFormat detect_chat_format(std::string_view template_source) {
  ChatFormat format;
  format.form = hermes_form();
  const Probe probe(template_source);
  read_thoughts(probe, template_source, format);
  const Json user = user_message();
  const auto tools_alone = probe.render(Json::array({user}), true);
  format.renders_tools = tools_alone && contains(*tools_alone, kTool);
  const Json system = {{"role", "system"}, {"content", "Probe rules."}};
  const auto with_system = probe.render(Json::array({system, user}), false);
  format.takes_system = with_system && contains(*with_system, "Probe rules.");
  std::string call;
  bool tools = true;
  bool shown = find_call_style(probe, tools, format, call);
  if (!shown) {  // some fail on a list of tools and yet write calls
    tools = false;
    shown = find_call_style(probe, tools, format, call);
  }
  if (shown) read_form(call, format);
  if (format.tools ==
      ToolSyntax::kNone) {  // calls are not shown, or in a form not known here: Hermes' is told
    format.renders_tools = false;
    return format;
  }
  const Json content = format.null_content ? Json(nullptr) : Json("");
  const auto renders = [&](Json calls) {
    Json message = {{"role", "assistant"}, {"content", content}, {"tool_calls", std::move(calls)}};
    return probe.render(Json::array({user, std::move(message)}), tools).has_value();
  };
  const auto call_of = [&](const char* id) { return call_json(format.arguments_as_text, id); };
  format.several_calls = renders(Json::array({call_of("prbcall01"), call_of("prbcall02")}));
  format.short_ids = !renders(Json::array({call_of("call_prbcall01")}));
  return format;
}

Thoughts thoughts_after(const ChatFormat& format, std::string_view prompt) {
  if (format.think_begin.empty()) return Thoughts::kNone;
  const auto trim = [](std::string_view text) {
    const size_t end = text.find_last_not_of(" \n\t\r");
    return text.substr(0, end == std::string_view::npos ? 0 : end + 1);
  };
  const std::string_view end = trim(prompt);
  if (end.ends_with(trim(format.think_begin))) return Thoughts::kOpen;
  if (end.ends_with(format.think_end)) return Thoughts::kNone;
  return Thoughts::kMaybe;
}

}  // namespace qiao::chat
