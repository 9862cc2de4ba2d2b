// What /v1/responses reads: items, tools and fields of OpenAI's Responses API, as a chat's turn.
#pragma once

#include <map>
#include <string>

#include "serve/chat_history.h"
#include "serve/chat_run.h"

namespace qiao::serve {

// How a tool that the model is offered under one name is called in the API.
struct OfferedTool {
  std::string name;
  std::string name_space;  // of a tool in a namespace; else empty
  bool custom = false;     // takes free text, which the model writes as the argument "input"
};
using OfferedTools = std::map<std::string, OfferedTool, std::less<>>;  // by the name the model knows

struct ResponsesRequest {
  ChatTurn turn;
  // The response object as it is before anything is generated: what the request said, with defaults.
  Json response;
  std::string items;  // JSON: a list of all input items, those of earlier responses first
  OfferedTools tools;
  bool stream = false;
  bool store = true;
  bool summary = false;  // thoughts are shown as the reasoning's summary
};

// Reads the body; ApiError names the field.
ResponsesRequest read_responses_request(ServeContext& context, const Json& body, std::string_view tenant);

// Adds the items of `input` (a text, or a list) to the history. Returns them as the API lists them: whole,
// and each with an id. `tools` tells how the model knows the calls among them.
Json read_items(const Json& input, const std::string& field, const OfferedTools& tools, ChatHistory& history);

// tools and tool_choice, into the turn; `response` gets them as they are echoed. Returns the offered ones.
OfferedTools read_response_tools(Fields& fields, ChatTurn& turn, Json& response);

}  // namespace qiao::serve
