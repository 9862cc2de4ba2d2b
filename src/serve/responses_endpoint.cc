// /v1/responses: create, retrieve, delete, list the input, count it.
#include <algorithm>

#include "serve/query.h"
#include "serve/response_answer.h"
#include "serve/response_store.h"

namespace qiao::serve {
namespace {

constexpr std::string_view kResponses = "/v1/responses/";

// The id in "/v1/responses/ID…".
std::string_view response_id(const HttpRequest& request) {
  const std::string_view rest = std::string_view(request.path).substr(kResponses.size());
  return rest.substr(0, rest.find('/'));
}

[[noreturn]] void throw_no_response(std::string_view id) {
  throw ApiError(404, fmt::format("response_id: there is no response '{}' (any more)", id.substr(0, 80)),
                 "response_id", "response_not_found");
}

std::shared_ptr<const StoredResponse> stored(ServeContext& context, const HttpRequest& request) {
  auto found = context.responses.find(api_key_of(request), response_id(request));
  if (found == nullptr) throw_no_response(response_id(request));
  return found;
}

}  // namespace

void create_response(ServeContext& context, const HttpRequest& request,
                     const std::shared_ptr<HttpExchange>& exchange) {
  ResponsesRequest read = read_responses_request(context, parse_body(request), api_key_of(request));
  auto answer = std::make_shared<ResponseAnswer>(context, read, exchange);
  run_chat(context, std::move(read.turn), exchange, std::move(answer));
}

void count_response_tokens(ServeContext& context, const HttpRequest& request,
                           const std::shared_ptr<HttpExchange>& exchange) {
  const ResponsesRequest read = read_responses_request(context, parse_body(request), api_key_of(request));
  send_json(exchange,
            {{"object", "response.input_tokens"}, {"input_tokens", count_chat_tokens(context, read.turn)}});
}

void retrieve_response(ServeContext& context, const HttpRequest& request,
                       const std::shared_ptr<HttpExchange>& exchange) {
  if (query_flag(request, "stream"))
    throw_bad_field("stream", "a response that is complete cannot be streamed again");
  exchange->send(200, "application/json", stored(context, request)->response);
}

void delete_response(ServeContext& context, const HttpRequest& request,
                     const std::shared_ptr<HttpExchange>& exchange) {
  const std::string_view id = response_id(request);
  if (!context.responses.erase(api_key_of(request), id)) throw_no_response(id);
  send_json(exchange, {{"id", id}, {"object", "response"}, {"deleted", true}});
}

void list_response_items(ServeContext& context, const HttpRequest& request,
                         const std::shared_ptr<HttpExchange>& exchange) {
  const int64_t limit = query_integer(request, "limit", 1, 100).value_or(20);
  const std::string order = query_text(request, "order").value_or("desc");
  if (order != "asc" && order != "desc")
    throw_bad_field("order", "'{}' is not allowed; asc and desc are", order.substr(0, 40));
  Json items = Json::parse(stored(context, request)->items);
  if (order == "desc") std::reverse(items.begin(), items.end());
  size_t first = 0;
  if (const auto after = query_text(request, "after")) {
    while (first < items.size() && items[first]["id"] != *after) ++first;
    if (first == items.size()) throw_bad_field("after", "there is no item '{}'", after->substr(0, 80));
    ++first;
  }
  const size_t end = std::min(items.size(), first + static_cast<size_t>(limit));
  Json data = Json::array();
  for (size_t i = first; i < end; ++i) data.push_back(std::move(items[i]));
  Json list = {{"object", "list"},
               {"first_id", data.empty() ? Json(nullptr) : data.front()["id"]},
               {"last_id", data.empty() ? Json(nullptr) : data.back()["id"]},
               {"has_more", end < items.size()}};
  list["data"] = std::move(data);
  send_json(exchange, list);
}

}  // namespace qiao::serve
