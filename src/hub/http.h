// A small HTTP client over libcurl for hubs: everything that comes back is bounded, and every failure is one
// line.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "hub/partial_file.h"

namespace qiao {

struct HttpOptions {
  std::string
      token;  // sent as "Authorization: Bearer", to the first address's host alone, never across a redirect
  std::chrono::milliseconds retry_delay{500};  // before the second try, doubled each time
  int tries = 5;
  // Where a server that is busy (429, 503) says when to come again (Retry-After), that is when; but all waits
  // of one request together are no longer than this.
  std::chrono::seconds patience{60};
  std::function<void(const std::string& what)> on_wait;  // hears of each wait of a second or more, and why
  std::chrono::seconds stall{30};                        // so long at under 64 bytes a second is a failed try
};

struct HttpText {
  std::string body;
  std::string next;  // the address of a Link header with rel="next", else empty
};

// One at a time; not for sharing between threads. Tries again after a lost connection, a stall, 429 and 5xx.
// Throws Error: kNotFound (404), kInvalidInput (401, 403, other 4xx, redirect loops, too much), kUnavailable
// (all tries failed). Messages name the address without its query.
class HttpClient {
 public:
  explicit HttpClient(HttpOptions options);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  HttpText get(const std::string& url, size_t max_bytes);

  // Appends to `file` until it is `bytes` long: asks for the rest alone where it holds some already and the
  // server's copy (its ETag, kept in FILE.etag) is still the same, else begins anew. `tick` hears the file's
  // size.
  void download(const std::string& url, uint64_t bytes, PartialFile& file,
                const std::function<void(uint64_t)>& tick);

 private:
  struct State;
  struct Response;
  Response perform(const std::string& url, const std::string& etag, uint64_t from,
                   const std::function<void(const Response&)>& on_headers,
                   const std::function<void(std::string_view)>& sink);
  template <typename Attempt>
  void with_retries(const std::string& url, Attempt attempt);

  HttpOptions options_;
  std::unique_ptr<State> state_;
};

}  // namespace qiao
