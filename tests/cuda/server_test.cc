// The HTTP server on the CUDA chip, whose device fails: who was under way gets a 500, who comes next the
// right text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "backend/cuda_stand_in/stand_in.h"
#include "infer/engine_harness.h"
#include "serve/raw_client.h"
#include "serve/server.h"

namespace qiao::serve {
namespace {

using ::testing::HasSubstr;

constexpr int kPatience = 60;     // seconds
constexpr int kManyTokens = 400;  // whose answer is seconds away

class Served {
 public:
  explicit Served(int64_t slots = 2) : model(qiao::testing::load_chat_model(1, "cuda")) {
    EngineOptions wished;
    wished.slots = slots;
    engine = std::make_unique<Engine>(model, wished);
    ServerOptions options;
    options.http.port = 0;
    options.model_name = "tiny";
    server = std::make_unique<Server>(model, *engine, options);
  }

  static std::string completion(const std::string& prompt, bool stream, int max_tokens = 6) {
    const std::string body = dump_json({{"model", "tiny"},
                                        {"prompt", prompt},
                                        {"max_tokens", max_tokens},
                                        {"temperature", 0},
                                        {"ignore_eos", true},
                                        {"stream", stream}});
    return fmt::format(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}",
        body.size(), body);
  }
  static std::string get(const std::string& path) {
    return fmt::format("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path);
  }
  std::string ask(const std::string& request) const {
    RawClient client(server->port(), kPatience);
    client.send(request);
    return client.read_all();
  }
  static Json body_of(const std::string& answer) {
    return parse_json(answer.substr(answer.find("\r\n\r\n") + 4), "answer");
  }
  // Waits out a restart.
  std::string text_of(const std::string& prompt) const {
    for (int tries = 0; tries < kPatience * 100; ++tries) {
      const std::string answer = ask(completion(prompt, false));
      if (!answer.starts_with("HTTP/1.1 503")) {
        EXPECT_THAT(answer, ::testing::StartsWith("HTTP/1.1 200"));
        return body_of(answer)["choices"][0]["text"].get<std::string>();
      }
      EXPECT_THAT(answer, HasSubstr("retry-after: 1\r\n"));
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "the server did not serve again";
    return {};
  }

  void wait_for_metrics(const std::vector<std::string>& lines) const {
    for (int tries = 0; tries < kPatience * 100; ++tries) {
      const std::string metrics = ask(get("/metrics"));
      if (std::ranges::all_of(
              lines, [&](const std::string& line) { return metrics.find(line) != std::string::npos; }))
        return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "the metrics did not come to " << lines.front();
  }

  std::shared_ptr<LanguageModel> model;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Server> server;
};

// One that runs, one that is streamed and one that waits for a slot.
TEST(CudaServerTest, ALostDeviceIsA500AndThenTheRightText) {
  const Served served(2);
  const std::string right = served.text_of("A bridge");
  EXPECT_THAT(served.ask(Served::get("/health")), HasSubstr("200 OK"));
  RawClient plain(served.server->port(), kPatience), streamed(served.server->port(), kPatience),
      queued(served.server->port(), kPatience);
  plain.send(Served::completion("A bridge", false, kManyTokens));
  streamed.send(Served::completion("carries", true, kManyTokens));
  queued.send(Served::completion("people", false, kManyTokens));
  served.wait_for_metrics({"vllm:num_requests_running{model_name=\"tiny\"} 2\n",
                           "vllm:num_requests_waiting{model_name=\"tiny\"} 1\n"});
  stand_in::fail_call("kernel", 1, cudaErrorIllegalAddress);
  for (RawClient* client : {&plain, &queued}) {
    const std::string answer = client->read_all();
    EXPECT_THAT(answer, ::testing::StartsWith("HTTP/1.1 500"));
    const Json error = Served::body_of(answer)["error"];
    EXPECT_EQ(error["type"], "server_error");
    EXPECT_EQ(error["param"], nullptr);
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("illegal memory access"));
  }
  const std::string events = streamed.read_all();
  EXPECT_THAT(events, HasSubstr("200 OK"));
  EXPECT_THAT(events, HasSubstr("illegal memory access"));
  EXPECT_THAT(events, ::testing::Not(HasSubstr("[DONE]")));
  EXPECT_EQ(served.text_of("A bridge"), right);
  EXPECT_THAT(served.ask(Served::get("/health")), HasSubstr("200 OK"));
  EXPECT_THAT(served.ask(Served::get("/metrics")),
              HasSubstr("qiao:device_restarts_total{model_name=\"tiny\"} 1\n"));
}

// Any call of the runtime may fail in any way: an answer is the right one or an error, and the next one is
// right.
TEST(CudaServerTest, WhateverCallFailsNoAnswerIsWrong) {
  const char* const given = std::getenv("QIAO_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : 20261126;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937_64 random(seed);
  const std::vector<std::string> prompts = {"A bridge", "carries people", "x"};
  std::vector<std::string> right;
  {
    const Served served;
    for (const std::string& prompt : prompts) right.push_back(served.text_of(prompt));
  }
  constexpr cudaError_t kErrors[] = {cudaErrorMemoryAllocation, cudaErrorIllegalAddress,
                                     cudaErrorInvalidValue};
  for (int round = 0; round < 12; ++round) {
    const Served served;
    const bool kernel = round % 4 == 3;  // what fails on the device loses it
    const cudaError_t error = kernel ? cudaErrorLaunchFailure : kErrors[round % std::size(kErrors)];
    const auto call = static_cast<int64_t>(random() % 600) + 1;
    stand_in::fail_call(kernel ? "kernel" : "", call, error);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const std::string answer = served.ask(Served::completion(prompts[i], false));
      if (answer.starts_with("HTTP/1.1 200")) {
        EXPECT_EQ(Served::body_of(answer)["choices"][0]["text"], right[i])
            << "call " << call << " error " << error;
      } else {
        EXPECT_THAT(answer, ::testing::AnyOf(::testing::StartsWith("HTTP/1.1 500"),
                                             ::testing::StartsWith("HTTP/1.1 503")));
        if (answer.starts_with("HTTP/1.1 503")) {
          EXPECT_THAT(answer, HasSubstr("\r\nretry-after: 1\r\n"));
        }
      }
    }
    stand_in::fail_call("", 0, cudaSuccess);  // where it has not failed yet, it does not any more
    EXPECT_EQ(served.text_of("x"), right[2]) << "call " << call << " error " << error;
  }
}

}  // namespace
}  // namespace qiao::serve
