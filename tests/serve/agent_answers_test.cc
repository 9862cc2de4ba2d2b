// What a model says with thoughts and calls of tools, as the events and objects of /v1/responses and
// /v1/messages. No model says it here: the sinks are given what run_chat gives them.
#include <gtest/gtest.h>

#include <filesystem>

#include "serve/message_answer.h"
#include "serve/response_answer.h"

namespace qiao::serve {
namespace {

using Kind = chat::ChatEvent::Kind;

// Keeps what is sent.
class KeptExchange final : public HttpExchange {
 public:
  void send(int status, std::string_view, std::string body, const HttpHeaders&) override {
    status_ = status;
    text_ = std::move(body);
    ended_ = true;
  }
  void begin(int status, std::string_view, const HttpHeaders&) override { status_ = status; }
  void write(std::string_view bytes) override { text_ += bytes; }
  void end() override { ended_ = true; }
  bool closed() const override { return false; }
  void on_close(std::function<void()>) override {}

  int status() const { return status_; }
  bool ended() const { return ended_; }
  Json whole() const { return Json::parse(text_); }
  // The data of each event; the name before it is its type.
  std::vector<Json> events() const {
    std::vector<Json> list;
    std::string_view rest = text_;
    while (!rest.empty()) {
      const size_t end = rest.find("\n\n");
      const size_t line = rest.find('\n');
      list.push_back(Json::parse(rest.substr(line + 7, end - line - 7)));
      EXPECT_EQ(rest.substr(0, line), "event: " + list.back()["type"].get<std::string>());
      rest.remove_prefix(end + 2);
    }
    return list;
  }

 private:
  int status_ = 0;
  bool ended_ = false;
  std::string text_;
};

std::vector<std::string> types(const std::vector<Json>& events) {
  std::vector<std::string> list;
  for (const Json& event : events) list.push_back(event["type"].get<std::string>());
  return list;
}

class AgentAnswersTest : public ::testing::Test {
 protected:
  static ServeContext& context() {
    static const auto model = [] {
      LanguageModelOptions options;
      options.threads = 1;
      return LanguageModel::load(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "chat", options);
    }();
    static Engine engine{model, {.context = 256}};
    static ServeContext context{"chat", model, engine};
    return context;
  }

  static void tell(ChatSink& sink, const ChatFinish& finish) {
    sink.on_begin(10);
    for (const chat::ChatEvent& event :
         std::vector<chat::ChatEvent>{{Kind::kReasoning, "Let me ", {}, {}},
                                      {Kind::kReasoning, "look.", {}, {}},
                                      {Kind::kText, "Looking", {}, {}},
                                      {Kind::kToolCall, {}, "call_1", "weather"},
                                      {Kind::kToolArguments, R"({"city":)", {}, {}},
                                      {Kind::kToolArguments, R"("Paris"})", {}, {}},
                                      {Kind::kToolCall, {}, "call_2", "patch"},
                                      {Kind::kToolArguments, R"({"input":"*** \"x\""})", {}, {}}}) {
      sink.on_event(0, event);
    }
    sink.on_finish(0, finish);
  }

  static Json responses_body() {
    return Json::parse(R"({"input": "a", "tools": [
        {"type": "namespace", "name": "sky", "description": "d",
         "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]},
        {"type": "custom", "name": "patch"}, {"type": "web_search"}]})");
  }

  std::shared_ptr<KeptExchange> respond(const Json& body, const ChatFinish& finish) {
    ResponsesRequest request = read_responses_request(context(), body, "me");
    const auto exchange = std::make_shared<KeptExchange>();
    ResponseAnswer answer(context(), request, exchange);
    tell(answer, finish);
    EXPECT_TRUE(exchange->ended());
    return exchange;
  }

  static Json messages_body() {
    return Json::parse(R"({"max_tokens": 100, "messages": [{"role": "user", "content": "a"}]})");
  }

  std::shared_ptr<KeptExchange> message(const Json& body, const ChatFinish& finish) {
    const MessagesRequest request = read_messages_request(context(), body, "me", false);
    const auto exchange = std::make_shared<KeptExchange>();
    MessageAnswer answer(context(), request, exchange, "req-1");
    tell(answer, finish);
    EXPECT_TRUE(exchange->ended());
    return exchange;
  }

  ChatFinish called_{.reason = ChatFinish::Reason::kToolCalls,
                     .prompt_tokens = 10,
                     .cached_tokens = 4,
                     .completion_tokens = 20,
                     .reasoning_tokens = 3};
};

TEST_F(AgentAnswersTest, AResponseHoldsThoughtsTextAndCalls) {
  const Json response = respond(responses_body(), called_)->whole();
  EXPECT_EQ(response["status"], "completed");
  const Json& output = response["output"];
  ASSERT_EQ(output.size(), 4U);
  EXPECT_EQ(output[0]["type"], "reasoning");
  EXPECT_EQ(output[0]["content"][0], Json({{"type", "reasoning_text"}, {"text", "Let me look."}}));
  EXPECT_EQ(output[1]["content"][0]["text"], "Looking");
  EXPECT_EQ(output[2]["type"], "function_call");
  EXPECT_EQ(output[2]["name"], "weather");
  EXPECT_EQ(output[2]["namespace"], "sky");
  EXPECT_EQ(output[2]["call_id"], "call_1");
  EXPECT_EQ(output[2]["arguments"], R"({"city":"Paris"})");
  EXPECT_EQ(output[3]["type"], "custom_tool_call");
  EXPECT_EQ(output[3]["input"], "*** \"x\"");
  EXPECT_EQ(response["usage"]["input_tokens_details"]["cached_tokens"], 4);
  EXPECT_EQ(response["usage"]["output_tokens_details"]["reasoning_tokens"], 3);
  EXPECT_EQ(response["tools"].size(), 2U) << "a tool that nobody runs is not echoed";
}

TEST_F(AgentAnswersTest, AResponsesEventsComeInTheirOrder) {
  Json body = responses_body();
  body["stream"] = true;
  const std::vector<Json> events = respond(body, called_)->events();
  const std::vector<std::string> expected = {"response.created",
                                             "response.in_progress",
                                             "response.output_item.added",
                                             "response.content_part.added",
                                             "response.reasoning_text.delta",
                                             "response.reasoning_text.delta",
                                             "response.reasoning_text.done",
                                             "response.content_part.done",
                                             "response.output_item.done",
                                             "response.output_item.added",
                                             "response.content_part.added",
                                             "response.output_text.delta",
                                             "response.output_text.done",
                                             "response.content_part.done",
                                             "response.output_item.done",
                                             "response.output_item.added",
                                             "response.function_call_arguments.delta",
                                             "response.function_call_arguments.delta",
                                             "response.function_call_arguments.done",
                                             "response.output_item.done",
                                             "response.output_item.added",
                                             "response.custom_tool_call_input.delta",
                                             "response.custom_tool_call_input.done",
                                             "response.output_item.done",
                                             "response.completed"};
  EXPECT_EQ(types(events), expected);
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i]["sequence_number"], i);
  // Items are announced empty, and done as the response then holds them.
  EXPECT_EQ(events[15]["item"]["arguments"], "");
  EXPECT_EQ(events[15]["item"]["status"], "in_progress");
  const Json& output = events.back()["response"]["output"];
  EXPECT_EQ(events[8]["item"], output[0]);
  EXPECT_EQ(events[14]["item"], output[1]);
  EXPECT_EQ(events[19]["item"], output[2]);
  EXPECT_EQ(events[23]["item"], output[3]);
  EXPECT_EQ(events[18]["arguments"], output[2]["arguments"]);
  for (const size_t i : {15U, 16U, 18U, 19U}) EXPECT_EQ(events[i]["output_index"], 2);
  EXPECT_EQ(events[16]["item_id"], output[2]["id"]);
}

TEST_F(AgentAnswersTest, ASummaryIsWrittenWhereItIsAskedFor) {
  Json body = responses_body();
  body["stream"] = true;
  body["reasoning"] = {{"summary", "auto"}};
  const std::vector<Json> events = respond(body, called_)->events();
  const std::vector<std::string> seen = types(events);
  const std::vector<std::string> expected = {"response.output_item.added",
                                             "response.reasoning_summary_part.added",
                                             "response.reasoning_summary_text.delta",
                                             "response.reasoning_summary_text.delta",
                                             "response.reasoning_summary_text.done",
                                             "response.reasoning_summary_part.done",
                                             "response.output_item.done"};
  EXPECT_EQ(std::vector<std::string>(seen.begin() + 2, seen.begin() + 9), expected);
  EXPECT_EQ(events[8]["item"]["summary"][0]["text"], "Let me look.");
}

TEST_F(AgentAnswersTest, AKeptResponseGoesOnWithItsCalls) {
  const Json response = respond(responses_body(), called_)->whole();
  Json body = responses_body();
  body["previous_response_id"] = response["id"];
  body["input"] = Json::parse(R"([
      {"type": "function_call_output", "call_id": "call_1", "output": "Sunny"},
      {"type": "custom_tool_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "Done"}]}])");
  const Json messages = read_responses_request(context(), body, "me").turn.messages;
  ASSERT_EQ(messages.size(), 4U);
  EXPECT_EQ(messages[0], Json({{"role", "user"}, {"content", "a"}}));
  EXPECT_EQ(messages[1]["reasoning_content"], "Let me look.");
  EXPECT_EQ(messages[1]["content"], "Looking");
  const Json& calls = messages[1]["tool_calls"];
  EXPECT_EQ(calls[0]["function"], Json::parse(R"({"name": "weather", "arguments": {"city": "Paris"}})"));
  EXPECT_EQ(calls[1]["function"], Json::parse(R"({"name": "patch", "arguments": {"input": "*** \"x\""}})"));
  EXPECT_EQ(messages[2]["tool_call_id"], "call_1");
  EXPECT_EQ(messages[2]["content"], "Sunny");
  EXPECT_EQ(messages[3]["content"], "Done");
  EXPECT_EQ(messages[3]["name"], "patch");
  EXPECT_THROW(read_responses_request(context(), body, "another"), ApiError);
}

TEST_F(AgentAnswersTest, ACutCallIsIncompleteAndAFailureIsTold) {
  ChatFinish finish = called_;
  finish.reason = ChatFinish::Reason::kLength;
  const Json response = respond(responses_body(), finish)->whole();
  EXPECT_EQ(response["status"], "incomplete");
  EXPECT_EQ(response["output"][3]["status"], "incomplete");
  EXPECT_EQ(response["output"][2]["status"], "completed");
  finish.reason = ChatFinish::Reason::kError;
  finish.error = "out of luck";
  EXPECT_EQ(respond(responses_body(), finish)->status(), 500);
  Json body = responses_body();
  body["stream"] = true;
  const Json last = respond(body, finish)->events().back();
  EXPECT_EQ(last["type"], "response.failed");
  EXPECT_EQ(last["response"]["error"], Json({{"code", "server_error"}, {"message", "out of luck"}}));
}

TEST_F(AgentAnswersTest, AMessageHoldsThoughtsTextAndCalls) {
  const Json whole = message(messages_body(), called_)->whole();
  EXPECT_EQ(whole["stop_reason"], "tool_use");
  EXPECT_EQ(whole["content"], Json::parse(R"([
      {"type": "thinking", "thinking": "Let me look.", "signature": "unsigned"},
      {"type": "text", "text": "Looking"},
      {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}},
      {"type": "tool_use", "id": "call_2", "name": "patch", "input": {"input": "*** \"x\""}}])"));
  EXPECT_EQ(whole["usage"]["input_tokens"], 6);
  EXPECT_EQ(whole["usage"]["cache_read_input_tokens"], 4);
  EXPECT_EQ(whole["usage"]["output_tokens"], 20);
}

TEST_F(AgentAnswersTest, AMessagesEventsComeInTheirOrder) {
  Json body = messages_body();
  body["stream"] = true;
  const std::vector<Json> events = message(body, called_)->events();
  const std::vector<std::string> expected = {"message_start",       "ping",
                                             "content_block_start", "content_block_delta",
                                             "content_block_delta", "content_block_delta",
                                             "content_block_stop",  "content_block_start",
                                             "content_block_delta", "content_block_stop",
                                             "content_block_start", "content_block_delta",
                                             "content_block_delta", "content_block_stop",
                                             "content_block_start", "content_block_delta",
                                             "content_block_stop",  "message_delta",
                                             "message_stop"};
  EXPECT_EQ(types(events), expected);
  EXPECT_EQ(events[3]["delta"], Json({{"type", "thinking_delta"}, {"thinking", "Let me "}}));
  EXPECT_EQ(events[5]["delta"]["type"], "signature_delta");
  EXPECT_EQ(events[8]["delta"], Json({{"type", "text_delta"}, {"text", "Looking"}}));
  EXPECT_EQ(events[10]["content_block"]["input"], Json::object());
  EXPECT_EQ(events[11]["delta"], Json({{"type", "input_json_delta"}, {"partial_json", "{\"city\":"}}));
  EXPECT_EQ(events[10]["index"], 2);
  EXPECT_EQ(events[17]["delta"]["stop_reason"], "tool_use");
  EXPECT_EQ(events[17]["usage"]["cache_read_input_tokens"], 4);
}

TEST_F(AgentAnswersTest, ThoughtsThatAreOmittedAreEmpty) {
  Json body = messages_body();
  body["thinking"] = {{"type", "adaptive"}, {"display", "omitted"}};
  const Json whole = message(body, called_)->whole();
  EXPECT_EQ(whole["content"][0]["thinking"], "");
}

TEST_F(AgentAnswersTest, AnthropicsToolsAndChoicesBecomeTheChats) {
  Json body = messages_body();
  body["tools"] = Json::parse(R"([{"name": "f", "description": "d", "input_schema": {"type": "object"}}])");
  body["tool_choice"] = {{"type", "tool"}, {"name", "f"}, {"disable_parallel_tool_use", true}};
  body["thinking"] = {{"type", "disabled"}};
  const ChatTurn turn = read_messages_request(context(), body, "me", false).turn;
  EXPECT_EQ(turn.tools, Json::parse(R"([{"type": "function", "function":
      {"name": "f", "description": "d", "parameters": {"type": "object"}}}])"));
  EXPECT_EQ(turn.tool_choice.kind, chat::ToolChoice::Kind::kNamed);
  EXPECT_EQ(turn.tool_choice.name, "f");
  EXPECT_FALSE(turn.parallel_tool_calls);
  EXPECT_EQ(turn.template_variables["enable_thinking"], false);
  body["tool_choice"] = {{"type", "any"}};
  EXPECT_EQ(read_messages_request(context(), body, "me", false).turn.tool_choice.kind,
            chat::ToolChoice::Kind::kRequired);
}

}  // namespace
}  // namespace qiao::serve
