#include "serve/http_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "base/error.h"
#include "serve/raw_client.h"

namespace qiao::serve {
namespace {

HttpServerOptions small() {
  HttpServerOptions options;
  options.port = 0;
  options.max_body_bytes = 1000;
  options.max_header_bytes = 2000;
  return options;
}

using ExchangePointer = std::shared_ptr<HttpExchange>;

// Whether it comes true; the limit ends a hang alone.
template <typename Condition>
bool comes(Condition condition) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition() && std::chrono::steady_clock::now() < limit)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  return condition();
}

TEST(HttpServerTest, AnswersWithLengthIdAndBody) {
  HttpServer server(small(), [](const HttpRequest& request, const ExchangePointer& exchange) {
    exchange->send(200, "text/plain",
                   request.method + " " + request.path + " " + request.query + " " + request.body);
  });
  RawClient client(server.port());
  client.send("POST /a/b?c=d HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nContent-Length: 2\r\n\r\nhi");
  const std::string answer = client.read_until("POST /a/b c=d hi");
  EXPECT_NE(answer.find("HTTP/1.1 200 OK\r\n"), std::string::npos) << answer;
  EXPECT_NE(answer.find("x-request-id: mine\r\n"), std::string::npos) << answer;
  EXPECT_NE(answer.find("Content-Length: 16\r\n"), std::string::npos) << answer;
}

TEST(HttpServerTest, KeepsTheConnectionForPipelinedRequests) {
  HttpServer server(small(), [](const HttpRequest& request, const ExchangePointer& exchange) {
    exchange->send(200, "text/plain", "<" + request.path + ">");
  });
  RawClient client(server.port());
  client.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string both = client.read_all();
  EXPECT_LT(both.find("</1>"), both.find("</2>"));
  EXPECT_NE(both.find("</2>"), std::string::npos) << both;
}

TEST(HttpServerTest, StreamsInChunksFromAnotherThread) {
  std::promise<ExchangePointer> taken;
  HttpServer server(small(),
                    [&](const HttpRequest&, const ExchangePointer& exchange) { taken.set_value(exchange); });
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  const ExchangePointer exchange = taken.get_future().get();
  exchange->begin(200, "text/event-stream");
  exchange->write("one");
  const std::string first = client.read_until("one\r\n");
  exchange->write("two");  // what waits together is sent together, so only now
  exchange->end();
  const std::string answer = first + client.read_until("0\r\n\r\n");
  EXPECT_NE(answer.find("Transfer-Encoding: chunked\r\n"), std::string::npos) << answer;
  EXPECT_NE(answer.find("3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), std::string::npos) << answer;
}

TEST(HttpServerTest, TellsTheHandlerThatThePeerHungUp) {
  std::atomic<bool> closed{false}, begun{false};
  HttpServer server(small(), [&](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->on_close([&] { closed = true; });
    exchange->begin(200, "text/plain");
    begun = true;
  });
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  client.read_until("\r\n\r\n");
  EXPECT_FALSE(closed);
  client.hang_up();
  EXPECT_TRUE(comes([&] { return closed.load(); }));
}

TEST(HttpServerTest, ClosesAReaderThatFallsTooFarBehind) {
  HttpServerOptions options = small();
  options.max_unsent_bytes = 100'000;
  std::atomic<bool> closed{false};
  std::promise<ExchangePointer> taken;
  HttpServer server(options, [&](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->on_close([&] { closed = true; });
    taken.set_value(exchange);
  });
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  std::thread writer([&closed, exchange = taken.get_future().get()] {
    exchange->begin(200, "text/plain");
    for (int i = 0; i < 100'000 && !closed; ++i) exchange->write(std::string(10'000, 'x'));
  });
  EXPECT_TRUE(comes([&] { return closed.load(); }));
  writer.join();
}

// What the server refuses by itself, each with a status and a body that says why.
struct Refusal {
  const char* name;
  std::string request;
  const char* status;
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

class HttpRefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(HttpRefusalTest, IsAnsweredAndTheServerGoesOn) {
  HttpServerOptions options = small();
  options.error_body = [](int status, std::string_view message) {
    return fmt::format("<{}: {}>", status, message);
  };
  HttpServer server(options, [](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->send(200, "text/plain", "fine");
  });
  {
    RawClient client(server.port());
    client.send(GetParam().request);
    const std::string answer = client.read_all();
    EXPECT_NE(answer.find(std::string("HTTP/1.1 ") + GetParam().status), std::string::npos) << answer;
    EXPECT_NE(answer.find(std::string("<") + GetParam().status), std::string::npos) << answer;
  }
  RawClient next(server.port());
  next.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_NE(next.read_until("fine").find("fine"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    All, HttpRefusalTest,
    testing::Values(
        Refusal{"BodyOverTheLimit", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n", "413"},
        Refusal{"ChunkedBodyOverTheLimit",
                "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" +
                    std::string(0x400, 'x') + "\r\n0\r\n\r\n",
                "413"},
        Refusal{"HeadersOverTheLimit",
                "GET / HTTP/1.1\r\nHost: x\r\nA: " + std::string(3000, 'a') + "\r\n\r\n", "431"},
        Refusal{"NotHttp", "hello there\r\n\r\n", "400"}, Refusal{"NoHost", "GET / HTTP/1.1\r\n\r\n", "400"},
        Refusal{"BadLength", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n", "400"},
        Refusal{"TwoLengths",
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"},
        Refusal{"BadChunk", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400"}),
    [](const auto& info) { return info.param.name; });

TEST(HttpServerTest, AHandlerThatThrowsIsAnError500) {
  HttpServer server(small(),
                    [](const HttpRequest&, const ExchangePointer&) { throw std::runtime_error("secret"); });
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string answer = client.read_all();
  EXPECT_NE(answer.find("HTTP/1.1 500"), std::string::npos) << answer;
  EXPECT_EQ(answer.find("secret"), std::string::npos);
}

TEST(HttpServerTest, ASlowRequestIsDroppedAndTheServerGoesOn) {
  HttpServerOptions options = small();
  options.request_seconds = 1;
  HttpServer server(options, [](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->send(200, "text/plain", "fine");
  });
  RawClient slow(server.port());
  slow.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Le");
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_NE(client.read_until("fine").find("200"), std::string::npos);
  EXPECT_EQ(slow.read_all(), "");  // closed after request_seconds
}

TEST(HttpServerTest, StopWaitsForTheAnswerInWork) {
  std::promise<ExchangePointer> taken;
  HttpServer server(small(),
                    [&](const HttpRequest&, const ExchangePointer& exchange) { taken.set_value(exchange); });
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  std::thread writer([exchange = taken.get_future().get()] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));  // stop() most likely waits by then
    exchange->send(200, "text/plain", "late");
  });
  server.stop(60);
  EXPECT_NE(client.read_until("late").find("late"), std::string::npos);
  writer.join();
}

TEST(HttpServerTest, TellsThatAPipeliningPeerHungUp) {
  std::atomic<bool> closed{false};
  HttpServer server(small(), [&](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->on_close([&] { closed = true; });
    exchange->begin(200, "text/plain");
  });
  RawClient client(server.port());
  client.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n");
  client.read_until("\r\n\r\n");
  client.send("GET /2 HTTP/1.1\r\nHost: x\r\n\r\n");  // not read before the first answer has ended
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(closed);
  client.hang_up();
  EXPECT_TRUE(comes([&] { return closed.load(); }));
}

TEST(HttpServerTest, AnswersWhatWasPipelinedDuringAnAnswer) {
  std::promise<ExchangePointer> first;
  HttpServer server(small(), [&](const HttpRequest& request, const ExchangePointer& exchange) {
    if (request.path == "/1") return first.set_value(exchange);
    exchange->send(200, "text/plain", "<" + request.path + request.body + ">");
  });
  RawClient client(server.port());
  client.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n");
  const ExchangePointer exchange = first.get_future().get();
  client.send("POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo");
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  client.send("dy");
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  exchange->send(200, "text/plain", "<first>");
  const std::string both = client.read_until("</2body>");
  EXPECT_LT(both.find("<first>"), both.find("</2body>"));
  EXPECT_NE(both.find("</2body>"), std::string::npos) << both;
}

TEST(HttpServerTest, AStreamBeforeHttp11EndsWithItsConnection) {
  HttpServer server(small(), [](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->begin(200, "text/plain");
    exchange->write("all");
    exchange->end();
  });
  RawClient client(server.port());
  client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const std::string answer =
      client.read_all();  // returns when the server closes, not after the client's 60 s
  EXPECT_TRUE(answer.ends_with("\r\n\r\nall")) << answer;
  EXPECT_EQ(answer.find("chunked"), std::string::npos) << answer;
}

TEST(HttpServerTest, AnAnswerWithoutContentSaysNoLength) {
  HttpServer server(small(), [](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->send(204, "text/plain", "");
  });
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string answer = client.read_all();
  EXPECT_NE(answer.find("HTTP/1.1 204"), std::string::npos) << answer;
  EXPECT_EQ(answer.find("Content-"), std::string::npos) << answer;
}

TEST(HttpServerTest, MoreConnectionsThanItTakesWait) {
  HttpServerOptions options = small();
  options.max_connections = 2;
  HttpServer server(options, [](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->send(200, "text/plain", "fine");
  });
  RawClient a(server.port()), b(server.port()), waiting(server.port());
  for (RawClient* client : {&a, &b}) {
    client->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_NE(client->read_until("fine").find("200"), std::string::npos);
  }
  waiting.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(server.connections(), 2u);
  a.hang_up();
  EXPECT_NE(waiting.read_until("fine").find("200"), std::string::npos);
}

TEST(HttpServerTest, AnswersOnKeptConnectionsWhileItStops) {
  HttpServer server(small(), [](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->send(200, "text/plain", "fine");
  });
  RawClient kept(server.port());
  kept.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  kept.read_until("fine");
  std::future<void> stopped =
      std::async(std::launch::async, [&] { server.stop(60, HttpServer::Idle::kAnswer); });
  EXPECT_EQ(stopped.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  kept.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string answer = kept.read_until("fine");
  EXPECT_NE(answer.find("Connection: close"), std::string::npos) << answer;
  EXPECT_EQ(stopped.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_EQ(server.connections(), 0u);
}

TEST(HttpServerTest, TakesOverASocketThatListens) {
  auto first = std::make_unique<HttpServer>(small(), [](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->send(200, "text/plain", "first");
  });
  const uint16_t port = first->port();
  HttpServerOptions options = small();
  options.listening_fd = ::dup(first->listening_fd());
  HttpServer second(options, [](const HttpRequest&, const ExchangePointer& exchange) {
    exchange->send(200, "text/plain", "second");
  });
  EXPECT_EQ(second.port(), port);
  first->stop(1);
  EXPECT_EQ(first->listening_fd(), -1);
  first.reset();
  RawClient client(port);
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_NE(client.read_until("second").find("200"), std::string::npos);

  options.listening_fd = ::socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_THROW(HttpServer(options, [](const HttpRequest&, const ExchangePointer&) {}), Error);
  ::close(options.listening_fd);
}

TEST(HttpServerTest, ATakenPortIsAnErrorThatNamesIt) {
  HttpServer first(small(), [](const HttpRequest&, const ExchangePointer&) {});
  HttpServerOptions options = small();
  options.port = first.port();
  try {
    HttpServer second(options, [](const HttpRequest&, const ExchangePointer&) {});
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kIo);
    EXPECT_NE(std::string(e.what()).find(std::to_string(first.port())), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace qiao::serve
