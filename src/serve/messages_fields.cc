#include "serve/messages_fields.h"

#include <algorithm>

#include "serve/chat_history.h"

namespace qiao::serve {
namespace {

constexpr size_t kMaxStopSequences = 64;
constexpr size_t kMaxStopSequenceBytes = 4096;
// Agents put a line for their accounting in front of the system prompt, another one with each request: the
// model has no use for it, and no prompt would begin like the one before.
constexpr std::string_view kBillingLine = "x-anthropic-billing-header:";

[[noreturn]] void refuse_block(const Fields& block, const std::string& type, std::string_view allowed) {
  throw ApiError(400,
                 fmt::format("{}: blocks of type '{}' cannot be read here; {} can", block.full_name("type"),
                             type.substr(0, 40), allowed),
                 block.full_name("type"), "unsupported_content");
}

// Plain text among documents; others are refused by their source's type.
std::string read_document(Fields& block) {
  const Json* source = block.find("source");
  if (source == nullptr) throw_bad_field(block.full_name("source"), "is required");
  Fields fields(*source, block.full_name("source") + ".");
  const std::string type = fields.required_text("type");
  if (type != "text") refuse_block(fields, type, "text");
  std::string text;
  for (const char* name : {"title", "context"}) {
    if (const auto value = block.text(name)) text += *value + "\n";
  }
  text += fields.required_text("data");
  fields.ignore({"media_type"});
  fields.finish();
  return text;
}

// A list of texts: a system prompt, what a tool answered.
std::string read_texts(const Json& content, const std::string& field, bool results) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    throw_bad_field(field, "expected a string or a list of blocks, got {}", content.type_name());
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    Fields block(content[i], fmt::format("{}[{}].", field, i));
    const std::string type = block.required_text("type");
    std::string said;
    if (type == "text") {
      said = block.required_text("text");
    } else if (results && type == "document") {
      said = read_document(block);
    } else if (results && type == "search_result") {
      const Json* inner = block.find("content");
      if (inner == nullptr) throw_bad_field(block.full_name("content"), "is required");
      said = fmt::format("{}\n{}\n{}", block.required_text("title"), block.required_text("source"),
                         read_texts(*inner, block.full_name("content"), false));
    } else if (results && type == "tool_reference") {
      said = block.required_text("tool_name");
    } else {
      refuse_block(block, type, results ? "text and documents of text" : "text");
    }
    block.ignore({"cache_control", "citations"});
    block.finish();
    if (said.starts_with(kBillingLine)) continue;
    if (!text.empty()) text += "\n\n";
    text += said;
  }
  return text;
}

void read_user_block(Fields& block, const std::string& type, ChatHistory& history) {
  if (type == "text") {
    history.add_user(block.required_text("text"));
  } else if (type == "document") {
    history.add_user(read_document(block));
  } else if (type == "search_result") {
    const Json* inner = block.find("content");
    if (inner == nullptr) throw_bad_field(block.full_name("content"), "is required");
    history.add_user(fmt::format("{}\n{}\n{}", block.required_text("title"), block.required_text("source"),
                                 read_texts(*inner, block.full_name("content"), false)));
  } else if (type == "tool_result") {
    const Json* content = block.find("content");
    const std::string text =
        content == nullptr ? std::string() : read_texts(*content, block.full_name("content"), true);
    block.flag("is_error", false);  // what went wrong stands in the content
    block.ignore({"toolset_name"});
    history.add_result(block.required_text("tool_use_id"), text, block.full_name("tool_use_id"));
  } else {
    refuse_block(block, type, "text, tool_result, search_result and documents of text");
  }
}

void read_assistant_block(Fields& block, const std::string& type, ChatHistory& history) {
  if (type == "text") {
    history.add_answer(block.required_text("text"));
  } else if (type == "thinking") {
    history.add_thoughts(block.required_text("thinking"));
    block.ignore({"signature"});
  } else if (type == "redacted_thinking") {
    block.ignore({"data"});
  } else if (type == "tool_use") {
    const Json* input = block.find("input");
    if (input == nullptr) throw_bad_field(block.full_name("input"), "is required");
    if (!input->is_object())
      throw_bad_field(block.full_name("input"), "expected an object, got {}", input->type_name());
    history.add_call(block.required_text("id"), block.required_text("name"), *input, block.full_name("id"));
    block.ignore({"caller", "toolset_name"});
  } else {
    refuse_block(block, type, "text, thinking, redacted_thinking and tool_use");
  }
}

void read_message(const Json& value, const std::string& path, ChatHistory& history) {
  Fields message(value, path);
  const std::string role = message.required_text("role");
  if (role != "user" && role != "assistant" && role != "system") {
    throw_bad_field(message.full_name("role"), "'{}' is not allowed; user, assistant and system are",
                    role.substr(0, 40));
  }
  const std::string field = message.full_name("content");
  const Json* content = message.find("content");
  if (content == nullptr) throw_bad_field(field, "is required");
  message.finish();
  if (role == "system") return history.add_system(read_texts(*content, field, false));
  const bool user = role == "user";
  if (content->is_string()) {
    const auto& text = content->get_ref<const std::string&>();
    return user ? history.add_user(text) : history.add_answer(text);
  }
  if (!content->is_array())
    throw_bad_field(field, "expected a string or a list of blocks, got {}", content->type_name());
  if (content->size() > kMaxHistoryEntries)
    throw_bad_field(field, "has {} entries; at most {} are allowed", content->size(), kMaxHistoryEntries);
  for (size_t i = 0; i < content->size(); ++i) {
    Fields block((*content)[i], fmt::format("{}[{}].", field, i));
    const std::string type = block.required_text("type");
    if (user) {
      read_user_block(block, type, history);
    } else {
      read_assistant_block(block, type, history);
    }
    block.ignore({"cache_control", "citations"});
    block.finish();
  }
}

Json read_tools(const Json& list) {
  if (!list.is_array()) throw_bad_field("tools", "expected a list, got {}", list.type_name());
  if (list.size() > kMaxTools)
    throw_bad_field("tools", "has {} entries; at most {} are allowed", list.size(), kMaxTools);
  Json tools = Json::array();
  std::set<std::string> names;
  for (size_t i = 0; i < list.size(); ++i) {
    Fields tool(list[i], fmt::format("tools[{}].", i));
    if (const auto type = tool.text("type"); type && *type != "custom") {
      throw ApiError(400,
                     fmt::format("{}: tools of type '{}' do not run here; those with an input_schema do",
                                 tool.full_name("type"), type->substr(0, 40)),
                     tool.full_name("type"), "unsupported_parameter");
    }
    const std::string name = tool.required_text("name");
    check_tool_name(name, tool.full_name("name"));
    if (!names.insert(name).second)
      throw_bad_field(tool.full_name("name"), "'{}' is the name of an earlier tool", name);
    Json function = {{"name", name}};
    if (const auto description = tool.text("description")) function["description"] = *description;
    const Json* schema = tool.find("input_schema");
    if (schema == nullptr) throw_bad_field(tool.full_name("input_schema"), "is required");
    if (!schema->is_object())
      throw_bad_field(tool.full_name("input_schema"), "expected an object, got {}", schema->type_name());
    function["parameters"] = *schema;
    if (tool.flag("strict", false)) function["strict"] = true;
    tool.ignore(
        {"cache_control", "allowed_callers", "defer_loading", "eager_input_streaming", "input_examples"});
    tool.finish();
    tools.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return tools;
}

void read_tool_choice(Fields& fields, ChatTurn& turn) {
  using Kind = chat::ToolChoice::Kind;
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return;
  Fields inner(*choice, "tool_choice.");
  const std::string type = inner.required_text("type");
  if (type == "auto") {
    turn.tool_choice.kind = Kind::kAuto;
  } else if (type == "any") {
    turn.tool_choice.kind = Kind::kRequired;
    if (turn.tools.empty()) throw_bad_field("tool_choice", "requires a call, and there are no tools");
  } else if (type == "none") {
    turn.tool_choice.kind = Kind::kNone;
  } else if (type == "tool") {
    turn.tool_choice = {Kind::kNamed, inner.required_text("name")};
    const bool known = std::any_of(turn.tools.begin(), turn.tools.end(), [&](const Json& tool) {
      return tool["function"]["name"] == turn.tool_choice.name;
    });
    if (!known)
      throw_bad_field("tool_choice.name", "'{}' is not among the tools", turn.tool_choice.name.substr(0, 80));
  } else {
    throw_bad_field("tool_choice.type", "'{}' is not allowed; auto, any, tool and none are",
                    type.substr(0, 40));
  }
  turn.parallel_tool_calls = !inner.flag("disable_parallel_tool_use", false);
  inner.finish();
}

void read_thinking(Fields& fields, MessagesRequest& out) {
  const Json* thinking = fields.find("thinking");
  if (thinking == nullptr) return;
  Fields inner(*thinking, "thinking.");
  const std::string type = inner.required_text("type");
  if (type != "enabled" && type != "disabled" && type != "adaptive" && type != "between_tools") {
    throw_bad_field("thinking.type", "'{}' is not allowed; enabled, disabled, adaptive and between_tools are",
                    type.substr(0, 40));
  }
  // As hybrid models' templates name it.
  out.turn.template_variables["enable_thinking"] = type != "disabled";
  const auto budget = inner.integer("budget_tokens", 1, kMaxTokensLimit);
  if (type == "enabled" && !budget) throw_bad_field("thinking.budget_tokens", "is required");
  if (const auto display = inner.text("display")) {
    if (*display != "summarized" && *display != "omitted")
      throw_bad_field("thinking.display", "'{}' is not allowed; summarized and omitted are",
                      display->substr(0, 40));
    out.show_thinking = *display != "omitted";
  }
  inner.finish();
}

void read_output_config(Fields& fields, ChatTurn& turn) {
  const auto read_format = [&](const Json& value, const std::string& field) {
    Fields format(value, field + ".");
    if (const std::string type = format.required_text("type"); type != "json_schema")
      throw_bad_field(field + ".type", "'{}' is not allowed; json_schema is", type.substr(0, 40));
    const Json* schema = format.find("schema");
    if (schema == nullptr) throw_bad_field(field + ".schema", "is required");
    turn.format.kind = OutputFormat::Kind::kJsonSchema;
    turn.format.schema = *schema;
    turn.format.field = field + ".schema";
    format.ignore({"name"});
    format.finish();
  };
  if (const Json* format = fields.find("output_format")) read_format(*format, "output_format");
  const Json* config = fields.find("output_config");
  if (config == nullptr) return;
  Fields inner(*config, "output_config.");
  if (const auto effort = inner.text("effort")) {
    constexpr std::string_view kEfforts[] = {"low", "medium", "high", "xhigh", "max"};
    if (std::find(std::begin(kEfforts), std::end(kEfforts), *effort) == std::end(kEfforts))
      throw_bad_field("output_config.effort", "'{}' is not allowed; low, medium, high, xhigh and max are",
                      effort->substr(0, 40));
    turn.template_variables["reasoning_effort"] = *effort;
  }
  if (const Json* format = inner.find("format")) read_format(*format, "output_config.format");
  inner.ignore({"task_budget"});
  inner.finish();
}

// mcp_servers, fallbacks: agents send empty lists of what would run elsewhere.
void refuse_unless_empty(Fields& fields, std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) {
    const Json* value = fields.find(name);
    if (value != nullptr && !value->empty())
      throw ApiError(400, fmt::format("{}: is not supported", name), std::string(name),
                     "unsupported_parameter");
  }
}

void read_history(Fields& fields, ChatTurn& turn) {
  ChatHistory history;
  if (const Json* system = fields.find("system")) {
    if (const std::string text = read_texts(*system, "system", false); !text.empty())
      history.add_system(text);
  }
  const Json* messages = fields.find("messages");
  if (messages == nullptr) throw_bad_field("messages", "is required");
  if (!messages->is_array() || messages->empty())
    throw_bad_field("messages", "expected a list of one or more messages");
  if (messages->size() > kMaxHistoryEntries) {
    throw_bad_field("messages", "has {} entries; at most {} are allowed", messages->size(),
                    kMaxHistoryEntries);
  }
  for (size_t i = 0; i < messages->size(); ++i)
    read_message((*messages)[i], fmt::format("messages[{}].", i), history);
  const bool continues = history.ends_with_answer();
  turn.messages = history.take();
  // An assistant's turn at the end is the beginning of the answer.
  if (continues && !turn.messages.back().contains("tool_calls")) {
    turn.answer_start = turn.messages.back()["content"].get<std::string>();
    turn.messages.erase(turn.messages.size() - 1);
    if (turn.messages.empty()) throw_bad_field("messages", "needs a message of the user");
  }
}

}  // namespace

MessagesRequest read_messages_request(ServeContext& context, const Json& body, std::string_view tenant,
                                      bool counting) {
  MessagesRequest out;
  ChatTurn& turn = out.turn;
  Fields fields(body);
  turn.adapter = check_model(context, fields);
  turn.tenant = tenant;
  if (const auto most = fields.integer("max_tokens", 1, kMaxTokensLimit)) {
    turn.max_tokens = *most;
  } else if (!counting) {
    throw_bad_field("max_tokens", "is required");
  }
  read_history(fields, turn);
  if (const Json* tools = fields.find("tools")) turn.tools = read_tools(*tools);
  read_tool_choice(fields, turn);
  read_thinking(fields, out);
  read_output_config(fields, turn);
  if (const Json* metadata = fields.find("metadata"); metadata != nullptr && !metadata->is_object())
    throw_bad_field("metadata", "expected an object, got {}", metadata->type_name());
  turn.generation = read_generation_fields(fields, *context.model);
  if (turn.generation.n != 1) throw_bad_field("n", "a message has one answer");
  for (const std::string& stop : fields.texts("stop_sequences", kMaxStopSequences)) {
    if (stop.empty() || stop.size() > kMaxStopSequenceBytes) {
      throw_bad_field("stop_sequences", "a text of {} bytes; 1 to {} are allowed", stop.size(),
                      kMaxStopSequenceBytes);
    }
    turn.generation.stop.push_back(stop);
  }
  out.stream = turn.generation.stream;
  refuse_unless_empty(fields, {"mcp_servers", "container", "fallbacks", "compaction", "thread"});
  fields.ignore({"cache_control", "context_management", "diagnostics", "inference_geo", "speed",
                 "user_profile_id", "workspace_id", "betas", "billing_policy", "fallback_credit_token"});
  fields.finish();
  return out;
}

}  // namespace qiao::serve
