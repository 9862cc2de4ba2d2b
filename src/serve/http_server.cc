// One thread runs all sockets; handlers run on a few others, so that a long tokenization delays no one's
// stream.
#include "serve/http_server.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <boost/asio.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <map>
#include <mutex>
#include <random>

#include <thread>

#include "base/error.h"

namespace qiao::serve {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using net::ip::tcp;

std::string_view HttpRequest::header(std::string_view lower_case_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_case_name) return value;
  }
  return {};
}

namespace {

constexpr std::chrono::seconds kRefusedSeconds(10);      // for the peer to take note of a refusal
constexpr size_t kMaxPipelinedBytes = size_t{64} << 10;  // kept of what comes while an answer is made

std::string new_request_id() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return fmt::format("req-{:016x}{:016x}", random(), random());
}

bool usable_request_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return c > ' ' && c < 127 && c != '"' && c != '\\';
  });
}

// The answer under construction: filled by any thread, sent by the connection's coroutine.
class Exchange final : public HttpExchange, public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(std::shared_ptr<net::io_context> io, std::string id, size_t max_unsent)
      : io_(std::move(io)),
        changed_(*io_, net::steady_timer::time_point::max()),
        id_(std::move(id)),
        max_unsent_(max_unsent) {}

  void send(int status, std::string_view content_type, std::string body,
            const HttpHeaders& headers) override {
    const std::lock_guard lock(mutex_);
    if (started_ || closed_) return;
    start(status, content_type, headers);
    whole_ = true;
    ended_ = true;
    unsent_bytes_ += body.size();
    unsent_.push_back(std::move(body));
    notify();
  }

  void begin(int status, std::string_view content_type, const HttpHeaders& headers) override {
    const std::lock_guard lock(mutex_);
    if (started_ || closed_) return;
    start(status, content_type, headers);
    notify();
  }

  void write(std::string_view bytes) override {
    std::function<void()> callback;
    {
      const std::lock_guard lock(mutex_);
      if (!started_ || ended_ || closed_ || bytes.empty()) return;
      if (unsent_bytes_ + bytes.size() > max_unsent_) {
        callback = close_locked();
      } else {
        unsent_bytes_ += bytes.size();
        unsent_.emplace_back(bytes);
      }
      notify();
    }
    if (callback) callback();
  }

  void end() override {
    const std::lock_guard lock(mutex_);
    if (!started_ || ended_ || closed_) return;
    ended_ = true;
    notify();
  }

  bool closed() const override {
    const std::lock_guard lock(mutex_);
    return closed_;
  }

  void on_close(std::function<void()> callback) override {
    {
      const std::lock_guard lock(mutex_);
      if (!closed_) {
        on_close_ = std::move(callback);
        return;
      }
    }
    callback();
  }

  // The connection's side.
  void close() {
    std::function<void()> callback;
    {
      const std::lock_guard lock(mutex_);
      callback = close_locked();
      notify();
    }
    if (callback) callback();
  }

  struct Pending {
    bool started = false, whole = false, ended = false, closed = false;
    std::string bytes;  // joined: fewer, larger writes when the network is slow
  };
  Pending take() {
    const std::lock_guard lock(mutex_);
    Pending pending{started_, whole_, ended_, closed_, {}};
    if (started_) {
      for (std::string& part : unsent_) {
        if (pending.bytes.empty()) {
          pending.bytes = std::move(part);
        } else {
          pending.bytes += part;
        }
      }
      unsent_.clear();
      unsent_bytes_ = 0;
    }
    return pending;
  }
  bool has_news() const {
    const std::lock_guard lock(mutex_);
    return closed_ || !unsent_.empty() || (started_ && !announced_) || (ended_ && !finished_);
  }
  bool over() const {
    const std::lock_guard lock(mutex_);
    return closed_ || finished_;
  }
  void announced() {
    const std::lock_guard lock(mutex_);
    announced_ = true;
  }
  void finished() {
    const std::lock_guard lock(mutex_);
    finished_ = true;
    on_close_ = nullptr;
  }
  // The timer that wakes the coroutine; touched on the I/O thread only.
  net::steady_timer& changed() { return changed_; }
  int status() const { return status_; }
  const std::string& content_type() const { return content_type_; }
  const HttpHeaders& headers() const { return headers_; }
  const std::string& id() const { return id_; }

 private:
  void start(int status, std::string_view content_type, const HttpHeaders& headers) {
    started_ = true;
    status_ = status;
    content_type_ = content_type;
    headers_ = headers;
  }
  std::function<void()> close_locked() {
    if (closed_ || finished_) return nullptr;
    closed_ = true;
    unsent_.clear();
    return std::exchange(on_close_, nullptr);
  }
  void notify() {
    net::post(changed_.get_executor(), [self = shared_from_this()] { self->changed_.cancel(); });
  }

  mutable std::mutex mutex_;
  std::shared_ptr<net::io_context> io_;  // an exchange may outlive its server: the timer needs its context
  net::steady_timer changed_;
  const std::string id_;
  const size_t max_unsent_;
  bool started_ = false, whole_ = false, ended_ = false, closed_ = false, announced_ = false,
       finished_ = false;
  int status_ = 0;
  std::string content_type_;
  HttpHeaders headers_;
  std::deque<std::string> unsent_;
  size_t unsent_bytes_ = 0;
  std::function<void()> on_close_;
};

}  // namespace

struct HttpServer::State : std::enable_shared_from_this<HttpServer::State> {
  State(const HttpServerOptions& o, Handler h)
      : options(o), handler(std::move(h)), acceptor(*io), handlers(static_cast<size_t>(o.handler_threads)) {}

  HttpServerOptions options;
  Handler handler;
  std::shared_ptr<net::io_context> io = std::make_shared<net::io_context>(1);
  net::executor_work_guard<net::io_context::executor_type> work{
      io->get_executor()};  // until the destructor stops it
  tcp::acceptor acceptor;
  net::steady_timer pause{*io};  // of the accept loop
  net::thread_pool handlers;
  std::thread thread;
  // Of the I/O thread.
  std::map<beast::tcp_stream*, std::shared_ptr<Exchange>> connections;  // with the exchange in work, if any
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable quiet;
  int in_work = 0;
  size_t open = 0;  // connections, those included that have only just been accepted
  bool closing = false;
  bool accepting = false;  // the accept loop has not ended
  uint16_t port = 0;

  net::awaitable<void> accept_loop();
  net::awaitable<void> serve(beast::tcp_stream stream);
  net::awaitable<bool> serve_one(beast::tcp_stream& stream, beast::flat_buffer& buffer);
  net::awaitable<bool> answer(beast::tcp_stream& stream, beast::flat_buffer& buffer,
                              http::request<http::string_body> request);
  net::awaitable<bool> send_refusal(beast::tcp_stream& stream, int status, std::string_view message);
  void watch(beast::tcp_stream& stream, beast::flat_buffer& buffer,
             const std::shared_ptr<Exchange>& exchange);
  void count_connection(int change);
};

namespace {

http::response<http::empty_body> make_head(const Exchange& exchange, unsigned version, bool keep_alive) {
  http::response<http::empty_body> head(static_cast<http::status>(exchange.status()), version);
  head.set(http::field::server, "qiao");
  head.set(http::field::content_type, exchange.content_type());
  head.set("x-request-id", exchange.id());
  for (const auto& [name, value] : exchange.headers()) head.set(name, value);
  head.keep_alive(keep_alive);
  return head;
}

// A peer that vanished without a word is found out by the kernel's probes, after about a minute.
void prepare(tcp::socket& socket) {
  const auto set = [&](int level, int name, int value) {
    ::setsockopt(socket.native_handle(), level, name, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

}  // namespace

net::awaitable<void> HttpServer::State::accept_loop() {
  const auto self = shared_from_this();
  while (!stopping) {
    error_code problem;
    tcp::socket socket = co_await acceptor.async_accept(net::redirect_error(net::use_awaitable, problem));
    if (!problem) {  // also one that came in as the server began to stop: it may have sent its request
      prepare(socket);
      count_connection(1);
      net::co_spawn(*io, serve(beast::tcp_stream(std::move(socket))), net::detached);
    }
    // Out of descriptors, or full: the others wait in the kernel's queue until some have closed.
    while (!stopping && (problem || open >= options.max_connections)) {
      pause.expires_after(std::chrono::milliseconds(50));
      co_await pause.async_wait(net::redirect_error(net::use_awaitable, problem));
      problem = {};
    }
  }
  const std::lock_guard lock(mutex);
  accepting = false;
  quiet.notify_all();
}

void HttpServer::State::count_connection(int change) {
  const std::lock_guard lock(mutex);
  open += static_cast<size_t>(change);
  quiet.notify_all();
}

net::awaitable<bool> HttpServer::State::send_refusal(beast::tcp_stream& stream, int status,
                                                     std::string_view message) {
  http::response<http::string_body> response(static_cast<http::status>(status), 11);
  response.set(http::field::server, "qiao");
  response.set(http::field::content_type, "application/json");
  response.set("x-request-id", new_request_id());
  response.keep_alive(false);
  response.body() = options.error_body ? options.error_body(status, message) : std::string(message);
  response.prepare_payload();
  error_code problem;
  stream.expires_after(std::chrono::seconds(options.write_seconds));
  co_await http::async_write(stream, response, net::redirect_error(net::use_awaitable, problem));
  if (problem) co_return false;
  // Let the peer read it before the connection resets over what it is still sending.
  stream.socket().shutdown(tcp::socket::shutdown_send, problem);
  std::vector<char> sink(size_t{64} << 10);
  stream.expires_after(kRefusedSeconds);
  while (!problem) {
    co_await stream.async_read_some(net::buffer(sink), net::redirect_error(net::use_awaitable, problem));
  }
  co_return false;
}

// Closes the exchange when the peer hangs up while the answer is being made. What a pipelining peer sends
// meanwhile is kept: only who reads on sees the end.
void HttpServer::State::watch(beast::tcp_stream& stream, beast::flat_buffer& buffer,
                              const std::shared_ptr<Exchange>& exchange) {
  stream.socket().async_wait(tcp::socket::wait_read, [this, &stream, &buffer, exchange](error_code problem) {
    // The answer is complete, and the connection may be gone (the wait may have ended before it was
    // cancelled).
    if (problem || exchange->over()) return;
    if (buffer.size() >= kMaxPipelinedBytes) return;
    const auto room = buffer.prepare(16 << 10);
    const ssize_t n = ::recv(stream.socket().native_handle(), room.data(), room.size(), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
      exchange->close();
      return;
    }
    if (n > 0) buffer.commit(static_cast<size_t>(n));
    watch(stream, buffer, exchange);
  });
}

net::awaitable<bool> HttpServer::State::answer(beast::tcp_stream& stream, beast::flat_buffer& buffer,
                                               http::request<http::string_body> request) {
  HttpRequest plain;
  plain.method = std::string(request.method_string());
  const std::string target(request.target());
  const size_t mark = target.find('?');
  plain.path = target.substr(0, mark);
  if (mark != std::string::npos) plain.query = target.substr(mark + 1);
  for (const auto& field : request) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    plain.headers.emplace_back(std::move(name), std::string(field.value()));
  }
  const std::string_view wished = plain.header("x-request-id");
  plain.id = usable_request_id(wished) ? std::string(wished) : new_request_id();
  const unsigned version = request.version();
  bool keep_alive = request.keep_alive() && !stopping;
  const bool head_only = request.method() == http::verb::head;
  plain.body = std::move(request.body());

  const auto exchange = std::make_shared<Exchange>(io, plain.id, options.max_unsent_bytes);
  net::post(handlers, [self = shared_from_this(), plain = std::move(plain), exchange] {
    try {
      self->handler(plain, exchange);
    } catch (const std::exception&) {
      const std::string message = "internal error";
      exchange->send(500, "application/json",
                     self->options.error_body ? self->options.error_body(500, message) : message, {});
    }
  });
  connections[&stream] = exchange;
  watch(stream, buffer, exchange);

  error_code problem;
  bool announced = false;
  while (true) {
    while (!exchange->has_news()) {
      exchange->changed().expires_at(net::steady_timer::time_point::max());
      co_await exchange->changed().async_wait(net::redirect_error(net::use_awaitable, problem));
      problem = {};
    }
    Exchange::Pending pending = exchange->take();
    if (pending.closed) co_return false;
    stream.expires_after(std::chrono::seconds(options.write_seconds));
    if (!announced) {
      announced = true;
      exchange->announced();
      keep_alive = keep_alive && !stopping;
      // Before HTTP/1.1 only the connection's end tells where a streamed answer ends.
      if (!pending.whole && version < 11) keep_alive = false;
      http::response<http::empty_body> head = make_head(*exchange, version, keep_alive);
      if (exchange->status() == 204) {
        head.erase(http::field::content_type);
      } else if (pending.whole) {
        head.content_length(pending.bytes.size());
      } else if (version >= 11) {
        head.chunked(true);
      }
      http::response_serializer<http::empty_body> serializer(head);
      co_await http::async_write_header(stream, serializer, net::redirect_error(net::use_awaitable, problem));
    }
    if (!problem && !pending.bytes.empty() && !head_only) {
      if (pending.whole || version < 11) {
        co_await net::async_write(stream, net::buffer(pending.bytes),
                                  net::redirect_error(net::use_awaitable, problem));
      } else {
        co_await net::async_write(stream, http::make_chunk(net::buffer(pending.bytes)),
                                  net::redirect_error(net::use_awaitable, problem));
      }
    }
    if (!problem && pending.ended && !pending.whole && version >= 11 && !head_only) {
      co_await net::async_write(stream, http::make_chunk_last(),
                                net::redirect_error(net::use_awaitable, problem));
    }
    if (problem) {
      exchange->close();
      co_return false;
    }
    if (pending.ended) break;
  }
  exchange->finished();
  connections[&stream] = nullptr;

  stream.socket().cancel(problem);  // the watch
  co_return keep_alive;
}

net::awaitable<void> HttpServer::State::serve(beast::tcp_stream stream) {
  const auto self = shared_from_this();
  connections.emplace(&stream, nullptr);
  beast::flat_buffer buffer;
  bool go_on = !closing;
  while (go_on) {
    error_code problem;
    if (buffer.size() == 0) {
      stream.expires_after(std::chrono::seconds(options.idle_seconds));
      const size_t n = co_await stream.async_read_some(buffer.prepare(16 << 10),
                                                       net::redirect_error(net::use_awaitable, problem));
      if (problem) break;
      buffer.commit(n);
    }
    {
      const std::lock_guard lock(mutex);
      ++in_work;
    }
    go_on = co_await serve_one(stream, buffer);
    {
      const std::lock_guard lock(mutex);
      if (--in_work == 0) quiet.notify_all();
    }
  }
  error_code ignored;
  stream.socket().shutdown(tcp::socket::shutdown_both, ignored);
  connections.erase(&stream);
  count_connection(-1);
}

// One request, whose first bytes are in the buffer; whether the connection goes on.
net::awaitable<bool> HttpServer::State::serve_one(beast::tcp_stream& stream, beast::flat_buffer& buffer) {
  error_code problem;
  http::request_parser<http::string_body> parser;
  parser.header_limit(static_cast<uint32_t>(options.max_header_bytes));
  parser.body_limit(options.max_body_bytes);
  stream.expires_after(std::chrono::seconds(options.request_seconds));
  co_await http::async_read_header(stream, buffer, parser, net::redirect_error(net::use_awaitable, problem));
  if (!problem && beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    http::response<http::empty_body> go(http::status::continue_, parser.get().version());
    co_await http::async_write(stream, go, net::redirect_error(net::use_awaitable, problem));
  }
  if (!problem)
    co_await http::async_read(stream, buffer, parser, net::redirect_error(net::use_awaitable, problem));
  if (!problem && parser.get().version() >= 11 &&
      parser.get().find(http::field::host) == parser.get().end()) {
    co_return co_await send_refusal(stream, 400, "malformed HTTP request: it has no Host");
  }
  if (!problem) {
    stream.expires_never();
    co_return co_await answer(stream, buffer, parser.release());
  }
  if (problem == http::error::body_limit) {
    co_return co_await send_refusal(stream, 413,
                                    fmt::format("body: over the limit of {} bytes", options.max_body_bytes));
  }
  if (problem == http::error::header_limit) {
    co_return co_await send_refusal(
        stream, 431, fmt::format("headers: over the limit of {} bytes", options.max_header_bytes));
  }
  // Nothing to say to who says nothing, or has gone.
  const bool malformed = problem != beast::error::timeout && problem != http::error::end_of_stream &&
                         problem != http::error::partial_message &&
                         problem.category() == http::make_error_code(http::error::bad_method).category();
  if (malformed) co_await send_refusal(stream, 400, "malformed HTTP request: " + problem.message());
  co_return false;
}

namespace {

void take_over(tcp::acceptor& acceptor, int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  int listens = 0;
  socklen_t listens_size = sizeof listens;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &listens_size) != 0 || listens == 0 ||
      (address.ss_family != AF_INET && address.ss_family != AF_INET6)) {
    throw_error(ErrorKind::kIo, "descriptor {}: is no listening TCP socket", fd);
  }
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  acceptor.assign(address.ss_family == AF_INET ? tcp::v4() : tcp::v6(), fd);
}

}  // namespace

HttpServer::HttpServer(const HttpServerOptions& options, Handler handler)
    : state_(std::make_shared<State>(options, std::move(handler))) {
  State& state = *state_;
  if (options.listening_fd >= 0) {
    take_over(state.acceptor, options.listening_fd);
  } else {
    try {
      tcp::resolver resolver(*state.io);
      const auto found = resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive);
      const tcp::endpoint endpoint = found.begin()->endpoint();
      state.acceptor.open(endpoint.protocol());
      state.acceptor.set_option(net::socket_base::reuse_address(true));
      state.acceptor.bind(endpoint);
      state.acceptor.listen(net::socket_base::max_listen_connections);
    } catch (const boost::system::system_error& e) {
      throw_error(ErrorKind::kIo, "cannot listen on {}:{}: {}", options.host, options.port,
                  e.code().message());
    }
  }
  state.port = state.acceptor.local_endpoint().port();
  state.accepting = true;
  net::co_spawn(*state.io, state.accept_loop(), net::detached);
  state.thread = std::thread([io = state.io] { io->run(); });
}

uint16_t HttpServer::port() const { return state_->port; }

int HttpServer::listening_fd() const { return state_->stopping ? -1 : state_->acceptor.native_handle(); }

size_t HttpServer::connections() const {
  const std::lock_guard lock(state_->mutex);
  return state_->open;
}

void HttpServer::stop(int seconds, Idle idle) {
  State& state = *state_;
  state.stopping = true;
  // Returns once the I/O thread has no connection in hand that is not counted.
  std::promise<void> closed;
  net::post(*state.io, [&] {
    error_code ignored;
    state.acceptor.close(ignored);
    state.pause.cancel();
    net::post(*state.io, [&] { closed.set_value(); });
  });
  closed.get_future().wait();
  std::unique_lock lock(state.mutex);
  state.quiet.wait_for(lock, std::chrono::seconds(seconds),
                       [&] { return state.in_work == 0 && (idle == Idle::kLeave || state.open == 0); });
}

HttpServer::~HttpServer() {
  stop(0);
  State& state = *state_;
  state.handlers.join();
  // Each coroutine ends by itself once its socket is closed; none may be left when the context goes.
  net::post(*state.io, [self = state_] {
    for (const auto& [stream, exchange] : self->connections) {
      if (exchange != nullptr) exchange->close();
      stream->close();
    }
    const std::lock_guard lock(self->mutex);
    self->closing = true;
    self->quiet.notify_all();
  });
  {
    std::unique_lock lock(state.mutex);
    state.quiet.wait(lock, [&] { return state.closing && state.open == 0 && !state.accepting; });
  }
  state.io->stop();
  state.thread.join();
}

}  // namespace qiao::serve
