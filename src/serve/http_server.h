// An HTTP/1.1 server (RFC 9112) for plain and streamed answers. Knows nothing of models.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qiao::serve {

struct HttpRequest {
  std::string method;  // "POST"
  std::string path;    // "/v1/models": what precedes '?', percent-decoding left undone
  std::string query;   // what follows it
  std::string body;
  std::string id;  // the client's x-request-id where it is short and printable, else one made here
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case

  std::string_view header(std::string_view lower_case_name) const;  // empty where absent
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// The answer to one request. Every method is safe from any thread and does nothing once the peer is gone.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  // A whole answer. Either this once, or begin, any number of write, end.
  virtual void send(int status, std::string_view content_type, std::string body,
                    const HttpHeaders& headers = {}) = 0;
  virtual void begin(int status, std::string_view content_type, const HttpHeaders& headers = {}) = 0;
  virtual void write(std::string_view bytes) = 0;
  virtual void end() = 0;
  virtual bool closed() const = 0;
  // Called once if the peer goes away (or reads too slowly) before the answer has ended; at once if it has
  // already.
  virtual void on_close(std::function<void()> callback) = 0;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;   // 0: the system picks one
  int listening_fd = -1;  // a socket that listens already, in place of host and port; taken over and closed
  size_t max_body_bytes = size_t{64} << 20;
  size_t max_header_bytes = size_t{64} << 10;
  size_t max_connections = 4096;               // more wait to be accepted
  size_t max_unsent_bytes = size_t{16} << 20;  // of one answer; a reader slower than that is closed
  int request_seconds = 60;                    // to send a whole request, once its first byte has come
  int idle_seconds = 120;                      // between requests
  int write_seconds = 60;                      // for the peer to take any of what is sent
  int handler_threads = 2;
  // Answers what the server itself refuses (a body over the limit, malformed HTTP): status and message to a
  // JSON body.
  std::function<std::string(int status, std::string_view message)> error_body;
};

class HttpServer {
 public:
  // Called on a handler thread for each request; must answer through the exchange, now or later. What it
  // throws becomes a 500 without details.
  using Handler = std::function<void(const HttpRequest&, const std::shared_ptr<HttpExchange>&)>;

  // Binds and listens, or takes listening_fd; throws Error(kIo) naming address and port, or what is wrong
  // with the socket.
  HttpServer(const HttpServerOptions& options, Handler handler);
  ~HttpServer();  // closes everything

  uint16_t port() const;
  int listening_fd() const;  // for a successor; -1 once stopped
  // Connections that are open now. Safe from any thread.
  size_t connections() const;
  enum class Idle {
    kLeave,   // connections without a request do not hold the return up
    kAnswer,  // nor may a request be lost that comes on one: returns when the peers have closed them
  };
  // Accepts no more connections; returns when those with a request in work have been answered, or after
  // `seconds`. Requests that still come on open connections are answered, each as its connection's last.
  void stop(int seconds, Idle idle = Idle::kLeave);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace qiao::serve
