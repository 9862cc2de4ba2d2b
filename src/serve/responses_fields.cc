#include "serve/responses_fields.h"

#include <algorithm>
#include <cmath>

#include "serve/response_store.h"

namespace qiao::serve {
namespace {

constexpr std::string_view kIncludable[] = {"file_search_call.results",
                                            "web_search_call.results",
                                            "web_search_call.action.sources",
                                            "message.input_image.image_url",
                                            "computer_call_output.output.image_url",
                                            "code_interpreter_call.outputs",
                                            "reasoning.encrypted_content",
                                            "message.output_text.logprobs"};

// Whether log-probabilities are among what is to be included. The rest is of parts that do not occur here.
bool read_include(Fields& fields) {
  bool logprobs = false;
  for (const std::string& name : fields.texts("include", 16)) {
    if (std::find(std::begin(kIncludable), std::end(kIncludable), name) == std::end(kIncludable))
      throw_bad_field("include", "'{}' is not known", name.substr(0, 80));
    logprobs |= name == "message.output_text.logprobs";
  }
  return logprobs;
}

Json read_metadata(Fields& fields) {
  const Json* metadata = fields.find("metadata");
  if (metadata == nullptr) return Json::object();
  if (!metadata->is_object())
    throw_bad_field("metadata", "expected an object, got {}", metadata->type_name());
  if (metadata->size() > 16)
    throw_bad_field("metadata", "has {} entries; at most 16 are allowed", metadata->size());
  for (const auto& [key, value] : metadata->items()) {
    if (key.size() > 64 || !value.is_string() || value.get_ref<const std::string&>().size() > 512)
      throw_bad_field("metadata", "keys of at most 64 bytes and texts of at most 512 are allowed");
  }
  return *metadata;
}

// One of the names, or null where the field is absent.
Json read_one_of(Fields& fields, std::string_view name, std::initializer_list<std::string_view> allowed) {
  const std::optional<std::string> value = fields.text(name);
  if (!value) return nullptr;
  if (std::find(allowed.begin(), allowed.end(), *value) == allowed.end())
    throw_bad_field(fields.full_name(name), "'{}' is not allowed; {} are", value->substr(0, 40),
                    fmt::join(allowed, ", "));
  return *value;
}

void read_reasoning(Fields& fields, ResponsesRequest& out) {
  Json shown = {{"effort", nullptr}, {"summary", nullptr}};
  if (const Json* reasoning = fields.find("reasoning")) {
    Fields inner(*reasoning, "reasoning.");
    shown["effort"] =
        read_one_of(inner, "effort", {"none", "minimal", "low", "medium", "high", "xhigh", "max"});
    shown["summary"] = read_one_of(inner, "summary", {"auto", "concise", "detailed", "none"});
    if (shown["summary"].is_null())
      shown["summary"] = read_one_of(inner, "generate_summary", {"auto", "concise", "detailed"});
    inner.ignore({"generate_summary", "context", "mode"});
    inner.finish();
  }
  if (!shown["effort"].is_null()) {
    out.turn.template_variables["reasoning_effort"] = shown["effort"];
    // Templates of hybrid models know a switch and no effort.
    if (shown["effort"] == "none") out.turn.template_variables["enable_thinking"] = false;
  }
  out.summary = !shown["summary"].is_null() && shown["summary"] != "none";
  out.response["reasoning"] = std::move(shown);
}

void read_text_format(Fields& fields, ResponsesRequest& out) {
  Json shown = {{"format", {{"type", "text"}}}, {"verbosity", "medium"}};
  if (const Json* text = fields.find("text")) {
    Fields inner(*text, "text.");
    if (Json verbosity = read_one_of(inner, "verbosity", {"low", "medium", "high"}); !verbosity.is_null())
      shown["verbosity"] = std::move(verbosity);
    if (const Json* format = inner.find("format")) {
      Fields kind(*format, "text.format.");
      const std::string type = kind.required_text("type");
      if (type == "json_object") {
        out.turn.format.kind = OutputFormat::Kind::kJsonObject;
        out.turn.format.field = "text.format";
      } else if (type == "json_schema") {
        out.turn.format.kind = OutputFormat::Kind::kJsonSchema;
        out.turn.format.field = "text.format.schema";
        kind.required_text("name");
        const Json* schema = kind.find("schema");
        if (schema == nullptr) throw_bad_field("text.format.schema", "is required");
        if (!schema->is_object())
          throw_bad_field("text.format.schema", "expected an object, got {}", schema->type_name());
        out.turn.format.schema = *schema;
        kind.flag("strict", true);
        kind.text("description");
      } else if (type != "text") {
        throw_bad_field("text.format.type", "'{}' is not allowed; text, json_object and json_schema are",
                        type.substr(0, 40));
      }
      kind.finish();
      shown["format"] = *format;
    }
    inner.finish();
  }
  out.response["text"] = std::move(shown);
}

// 0.2F as 0.2, not as the float64 next to it.
double shown_number(float value) { return std::round(static_cast<double>(value) * 1e6) / 1e6; }

// Drops what is oldest, instructions kept, until the prompt fits; what then is too long all the same is
// refused by run_chat.
void truncate(ServeContext& context, ChatTurn& turn) {
  const Json all = turn.messages;
  size_t instructions = 0;
  while (instructions < all.size() && all[instructions]["role"] == "system") ++instructions;
  const auto without = [&](size_t dropped) {
    turn.messages = Json::array();
    for (size_t i = 0; i < instructions; ++i) turn.messages.push_back(all[i]);
    for (size_t i = instructions + dropped; i < all.size(); ++i) turn.messages.push_back(all[i]);
  };
  // A turn may begin with what the user said, not with the output of a call that nobody sees.
  const auto may_begin = [&](size_t dropped) { return all[instructions + dropped]["role"] == "user"; };
  const auto fits = [&] { return count_chat_tokens(context, turn) < context.engine.options().context; };
  if (fits()) return;
  std::vector<size_t> cuts;
  for (size_t dropped = 1; instructions + dropped < all.size(); ++dropped) {
    if (may_begin(dropped)) cuts.push_back(dropped);
  }
  // The fewest that are enough: fewer messages never make a longer prompt.
  size_t low = 0, high = cuts.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    without(cuts[middle]);
    if (fits()) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  without(low < cuts.size() ? cuts[low] : cuts.empty() ? 0 : cuts.back());
}

}  // namespace

ResponsesRequest read_responses_request(ServeContext& context, const Json& body, std::string_view tenant) {
  ResponsesRequest out;
  Fields fields(body);
  ChatTurn& turn = out.turn;
  turn.adapter = check_model(context, fields);
  turn.tenant = tenant;
  turn.prompt_field = "input";
  Json& response = out.response;
  response = {{"id", random_id("resp_")},
              {"object", "response"},
              {"created_at", unix_seconds()},
              {"status", "in_progress"},
              {"background", false},
              {"completed_at", nullptr},
              {"error", nullptr},
              {"incomplete_details", nullptr},
              {"instructions", nullptr},
              {"max_output_tokens", nullptr},
              {"max_tool_calls", nullptr},
              {"metadata", read_metadata(fields)},
              {"model", context.served_name(turn.adapter)},
              {"output", Json::array()}};

  const std::optional<std::string> instructions = fields.text("instructions");
  if (instructions) response["instructions"] = *instructions;
  const std::optional<std::string> previous = fields.text("previous_response_id");
  response["previous_response_id"] = previous ? Json(*previous) : Json(nullptr);
  const Json* input = fields.find("input");
  if (input == nullptr && !previous) throw_bad_field("input", "is required");
  out.tools = read_response_tools(fields, turn, response);

  ChatHistory history;
  if (instructions && !instructions->empty()) history.add_system(*instructions);
  Json items = Json::array();
  if (previous) {
    const auto earlier = context.responses.find(tenant, *previous);
    if (earlier == nullptr) {
      throw ApiError(
          404,
          fmt::format("previous_response_id: there is no response '{}' (any more)", previous->substr(0, 80)),
          "previous_response_id", "previous_response_not_found");
    }
    Json before = Json::parse(earlier->items);
    Json answer = Json::parse(earlier->response);
    for (Json& item : answer["output"]) before.push_back(std::move(item));
    items = read_items(before, "previous_response_id", out.tools, history);
  }
  if (input != nullptr) {
    Json given = read_items(*input, "input", out.tools, history);
    for (Json& item : given) items.push_back(std::move(item));
  }
  if (history.empty()) throw_bad_field("input", "is empty");
  out.items = dump_json(items);
  turn.messages = history.take();

  const bool logprobs = read_include(fields);
  const auto top_logprobs = fields.integer("top_logprobs", 0, 20);
  turn.logprobs = logprobs || top_logprobs.value_or(0) > 0;
  turn.top_logprobs = static_cast<int32_t>(top_logprobs.value_or(0));
  response["top_logprobs"] = turn.top_logprobs;
  if (const auto most = fields.integer("max_output_tokens", 1, kMaxTokensLimit)) {
    turn.max_tokens = *most;
    response["max_output_tokens"] = *most;
  }
  // Counts calls of hosted tools, of which there are none.
  if (const auto most = fields.integer("max_tool_calls", 0, kMaxTokensLimit))
    response["max_tool_calls"] = *most;
  read_reasoning(fields, out);
  read_text_format(fields, out);
  const Json truncation = read_one_of(fields, "truncation", {"auto", "disabled"});
  response["truncation"] = truncation.is_null() ? Json("disabled") : truncation;
  out.store = fields.flag("store", true);
  response["store"] = out.store;
  for (const char* name : {"prompt_cache_key", "safety_identifier", "user"}) {
    if (const auto value = fields.text(name)) response[name] = *value;
  }
  turn.generation = read_generation_fields(fields, *context.model);
  if (turn.generation.n != 1) throw_bad_field("n", "a response has one answer");
  out.stream = turn.generation.stream;
  response["temperature"] = shown_number(turn.generation.sampling.temperature);
  response["top_p"] = shown_number(turn.generation.sampling.top_p);
  response["service_tier"] = "default";
  response["usage"] = nullptr;
  fields.refuse({"background", "conversation", "prompt", "moderation"}, "is not supported");
  fields.ignore({"context_management", "prompt_cache_options", "client_metadata"});
  fields.finish();
  if (truncation == "auto") truncate(context, turn);
  return out;
}

}  // namespace qiao::serve
