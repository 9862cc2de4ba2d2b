// Items of the Responses API: messages, calls of tools, their outputs, thoughts.
#include "serve/generation_fields.h"
#include "serve/responses_fields.h"

namespace qiao::serve {
namespace {

// The name by which the model knows a tool of the API; its own where it is not offered (any more).
std::string model_name_of(const OfferedTools& tools, const std::string& name, const std::string& name_space) {
  for (const auto& [offered, tool] : tools) {
    if (tool.name == name && (name_space.empty() || tool.name_space == name_space)) return offered;
  }
  return name;
}

[[noreturn]] void refuse_part(const Fields& part, const std::string& type) {
  throw ApiError(400,
                 fmt::format("{}: parts of type '{}' cannot be read by this model; only text can",
                             part.full_name("type"), type.substr(0, 40)),
                 part.full_name("type"), "unsupported_content");
}

// The text of a message's or an output's content. `shown` gets the content as the API lists it: `kind` parts.
std::string read_parts(const Json& content, const std::string& field, const char* kind, Json& shown) {
  shown = Json::array();
  const auto show = [&](const std::string& text) {
    Json part = {{"type", kind}, {"text", text}};
    if (kind == std::string_view("output_text")) part["annotations"] = Json::array();
    shown.push_back(std::move(part));
  };
  if (content.is_string()) {
    show(content.get_ref<const std::string&>());
    return content.get<std::string>();
  }
  if (!content.is_array())
    throw_bad_field(field, "expected a string or a list of parts, got {}", content.type_name());
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    Fields part(content[i], fmt::format("{}[{}].", field, i));
    const std::string type = part.required_text("type");
    const bool refusal = type == "refusal";
    if (type != "input_text" && type != "output_text" && type != "text" && !refusal) refuse_part(part, type);
    const std::string said = part.required_text(refusal ? "refusal" : "text");
    part.ignore({"annotations", "logprobs", "prompt_cache_breakpoint"});
    part.finish();
    if (i > 0) text += '\n';
    text += said;
    show(said);
  }
  return text;
}

// The thoughts of a reasoning item: its text where it has one, else its summary.
std::string read_thoughts(Fields& item) {
  const auto join = [&](const char* name, std::string_view type) {
    std::string text;
    const Json* parts = item.find(name);
    if (parts == nullptr) return text;
    if (!parts->is_array())
      throw_bad_field(item.full_name(name), "expected a list, got {}", parts->type_name());
    for (size_t i = 0; i < parts->size(); ++i) {
      Fields part((*parts)[i], fmt::format("{}[{}].", item.full_name(name), i));
      if (const std::string given = part.required_text("type"); given != type && given != "text")
        throw_bad_field(part.full_name("type"), "'{}' is not allowed; {} is", given.substr(0, 40), type);
      if (!text.empty()) text += '\n';
      text += part.required_text("text");
      part.finish();
    }
    return text;
  };
  const std::string content = join("content", "reasoning_text");
  const std::string summary = join("summary", "summary_text");
  return content.empty() ? summary : content;
}

void check_role(const std::string& role, const std::string& field) {
  if (role != "user" && role != "assistant" && role != "system" && role != "developer") {
    throw_bad_field(field, "'{}' is not allowed; system, developer, user and assistant are",
                    role.substr(0, 40));
  }
}

// A message; with "type" or without.
void read_message(Fields& item, Json& shown, ChatHistory& history) {
  const std::string role = item.required_text("role");
  check_role(role, item.full_name("role"));
  const Json* content = item.find("content");
  if (content == nullptr) throw_bad_field(item.full_name("content"), "is required");
  Json parts;
  const std::string text = read_parts(*content, item.full_name("content"),
                                      role == "assistant" ? "output_text" : "input_text", parts);
  item.ignore({"phase"});
  shown["role"] = role;
  shown["content"] = std::move(parts);
  if (role == "assistant") {
    history.add_answer(text);
  } else if (role == "user") {
    history.add_user(text);
  } else {
    history.add_system(text);
  }
}

void read_call(Fields& item, bool custom, const OfferedTools& tools, Json& shown, ChatHistory& history) {
  const std::string id = item.required_text("call_id");
  const std::string name = item.required_text("name");
  const std::string name_space = item.text("namespace").value_or("");
  const char* key = custom ? "input" : "arguments";
  const std::string text = item.required_text(key);
  item.ignore({"caller", "async"});
  Json arguments = custom ? Json{{"input", text}} : parse_arguments(text, item.full_name(key));
  history.add_call(id, model_name_of(tools, name, name_space), std::move(arguments),
                   item.full_name("call_id"));
  shown["call_id"] = id;
  shown["name"] = name;
  if (!name_space.empty()) shown["namespace"] = name_space;
  shown[key] = text;
}

void read_output(Fields& item, Json& shown, ChatHistory& history) {
  const std::string id = item.required_text("call_id");
  const Json* output = item.find("output");
  if (output == nullptr) throw_bad_field(item.full_name("output"), "is required");
  Json parts;
  const std::string text = read_parts(*output, item.full_name("output"), "input_text", parts);
  item.ignore({"caller", "name", "namespace"});
  history.add_result(id, text, item.full_name("call_id"));
  shown["call_id"] = id;
  shown["output"] = output->is_string() ? *output : parts;
}

Json read_item(const Json& value, const std::string& path, const OfferedTools& tools, ChatHistory& history) {
  Fields item(value, path);
  const std::string type = item.text("type").value_or("message");
  const auto starts = [&](std::string_view prefix) {
    const std::string id = item.text("id").value_or("");
    Json shown = {{"id", id.empty() ? random_id(prefix) : id}, {"type", type}};
    item.ignore({"status"});
    shown["status"] = "completed";
    return shown;
  };
  Json shown;
  if (type == "message") {
    shown = starts("msg_");
    read_message(item, shown, history);
  } else if (type == "function_call" || type == "custom_tool_call") {
    const bool custom = type == "custom_tool_call";
    shown = starts(custom ? "ctc_" : "fc_");
    read_call(item, custom, tools, shown, history);
  } else if (type == "function_call_output" || type == "custom_tool_call_output") {
    shown = starts("fco_");
    read_output(item, shown, history);
  } else if (type == "reasoning") {
    shown = starts("rs_");
    history.add_thoughts(read_thoughts(item));
    const Json* summary = item.find("summary");
    shown["summary"] = summary == nullptr ? Json::array() : *summary;
    if (const Json* content = item.find("content")) shown["content"] = *content;
    item.ignore({"encrypted_content"});  // thoughts are not encrypted here: what is, others' models wrote
  } else {
    throw ApiError(400,
                   fmt::format("{}type: items of type '{}' are not supported; message, function_call, "
                               "function_call_output, custom_tool_call, custom_tool_call_output and "
                               "reasoning are",
                               path, type.substr(0, 40)),
                   path + "type", "unsupported_content");
  }
  item.ignore({"internal_chat_message_metadata_passthrough"});
  item.finish();
  return shown;
}

}  // namespace

Json read_items(const Json& input, const std::string& field, const OfferedTools& tools,
                ChatHistory& history) {
  if (input.is_string()) {
    Json message = {{"role", "user"}, {"content", input}};
    return read_items(Json::array({std::move(message)}), field, tools, history);
  }
  if (!input.is_array())
    throw_bad_field(field, "expected a string or a list of items, got {}", input.type_name());
  if (input.size() > kMaxHistoryEntries)
    throw_bad_field(field, "has {} entries; at most {} are allowed", input.size(), kMaxHistoryEntries);
  Json items = Json::array();
  for (size_t i = 0; i < input.size(); ++i)
    items.push_back(read_item(input[i], fmt::format("{}[{}].", field, i), tools, history));
  return items;
}

}  // namespace qiao::serve
