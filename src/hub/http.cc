#include "hub/http.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/version.h"

namespace qiao {
namespace {

constexpr int kMaxRedirects = 8;
constexpr size_t kMaxHeaderBytes = size_t{64} << 10;
constexpr size_t kMaxEtag = 256;
constexpr curl_off_t kMaxRetryAfter = 365 * 24 * 3600;  // seconds; for the arithmetic, nobody waits so long

std::string without_query(const std::string& url) { return url.substr(0, url.find_first_of("?#")); }

// Scheme, host and port as one text; empty for what is not an http address.
std::string origin_of(const std::string& url) {
  const std::unique_ptr<CURLU, void (*)(CURLU*)> parsed(curl_url(), curl_url_cleanup);
  if (curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK) return "";
  std::string origin;
  for (const CURLUPart part : {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT}) {
    char* text = nullptr;
    if (curl_url_get(parsed.get(), part, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) return "";
    origin += std::string(origin.empty() ? "" : " ") + text;
    curl_free(text);
  }
  if (!origin.starts_with("http ") && !origin.starts_with("https ")) return "";
  return origin;
}

std::string absolute(const std::string& base, const std::string& location) {
  const std::unique_ptr<CURLU, void (*)(CURLU*)> parsed(curl_url(), curl_url_cleanup);
  char* text = nullptr;
  if (curl_url_set(parsed.get(), CURLUPART_URL, base.c_str(), 0) != CURLUE_OK ||
      curl_url_set(parsed.get(), CURLUPART_URL, location.c_str(), 0) != CURLUE_OK ||
      curl_url_get(parsed.get(), CURLUPART_URL, &text, 0) != CURLUE_OK) {
    return "";
  }
  const std::string result = text;
  curl_free(text);
  return result;
}

std::string trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  return std::string(text);
}

// <address>; rel="next" of a Link header.
std::string next_of(const std::string& link) {
  const size_t rel = link.find("rel=\"next\"");
  if (rel == std::string::npos) return "";
  const size_t open = link.rfind('<', rel), close = link.rfind('>', rel);
  if (open == std::string::npos || close == std::string::npos || close < open) return "";
  return link.substr(open + 1, close - open - 1);
}

// A failure after which the same request may go well.
class Transient : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace

struct HttpClient::Response {
  long status = 0;
  std::string location, etag, link, content_range;
  std::chrono::seconds retry_after{0};  // 0: it does not say
};

struct HttpClient::State {
  CURL* curl = nullptr;
  State() {
    static const CURLcode global = curl_global_init(CURL_GLOBAL_DEFAULT);
    curl = global == CURLE_OK ? curl_easy_init() : nullptr;
    if (curl == nullptr) throw_error(ErrorKind::kUnavailable, "libcurl cannot start");
  }
  ~State() { curl_easy_cleanup(curl); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

namespace {

// What libcurl's callbacks see. An exception may not cross libcurl: it waits here.
struct Transfer {
  CURL* curl = nullptr;
  std::function<void(std::string_view)> on_header;
  std::function<void(std::string_view)> on_body;
  size_t header_bytes = 0;
  std::exception_ptr thrown;

  static size_t header(char* bytes, size_t, size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    transfer.header_bytes += count;
    if (transfer.header_bytes > kMaxHeaderBytes) return 0;
    return transfer.guarded(transfer.on_header, {bytes, count});
  }
  static size_t body(char* bytes, size_t, size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    return transfer.guarded(transfer.on_body, {bytes, count});
  }
  size_t guarded(const std::function<void(std::string_view)>& function, std::string_view bytes) {
    try {
      function(bytes);
      return bytes.size();
    } catch (...) {
      thrown = std::current_exception();  // thrown again by perform()
      return 0;
    }
  }
};

}  // namespace

HttpClient::HttpClient(HttpOptions options)
    : options_(std::move(options)), state_(std::make_unique<State>()) {}
HttpClient::~HttpClient() = default;

// One request and its redirects. on_headers hears the final answer's before its body; the body of another
// status than 200 and 206 is dropped.
HttpClient::Response HttpClient::perform(const std::string& url, const std::string& etag, uint64_t from,
                                         const std::function<void(const Response&)>& on_headers,
                                         const std::function<void(std::string_view)>& sink) {
  CURL* curl = state_->curl;
  const std::string first_origin = origin_of(url);
  if (first_origin.empty())
    throw_error(ErrorKind::kInvalidInput, "{}: not an http or https address", without_query(url));
  std::string address = url;
  for (int redirects = 0; redirects <= kMaxRedirects; ++redirects) {
    const std::string origin = origin_of(address);
    if (origin.empty() || (first_origin.starts_with("https ") && !origin.starts_with("https "))) {
      throw_error(ErrorKind::kInvalidInput, "{}: redirects to {}, which is not taken", without_query(url),
                  without_query(address));
    }
    curl_easy_reset(curl);
    curl_slist* list = nullptr;
    if (!options_.token.empty() && origin == first_origin) {
      list = curl_slist_append(list, ("Authorization: Bearer " + options_.token).c_str());
    }
    if (from > 0) {
      list = curl_slist_append(list, fmt::format("Range: bytes={}-", from).c_str());
      list = curl_slist_append(list, ("If-Range: " + etag).c_str());
    }
    const std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers(list, curl_slist_free_all);

    Response response;
    bool announced = false;
    Transfer transfer;
    transfer.curl = curl;
    transfer.on_header = [&](std::string_view line) {
      if (line.starts_with("HTTP/")) response = {};  // an interim answer (100) came before
      const size_t colon = line.find(':');
      if (colon == std::string_view::npos) return;
      std::string name(line.substr(0, colon));
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      const std::string value = trimmed(line.substr(colon + 1));
      if (name == "location") response.location = value;
      if (name == "etag") response.etag = value;
      if (name == "link") response.link = value;
      if (name == "content-range") response.content_range = value;
    };
    transfer.on_body = [&](std::string_view bytes) {
      curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &response.status);
      if (response.status != 200 && response.status != 206) return;
      if (!announced) on_headers(response);
      announced = true;
      sink(bytes);
    };
    char reason[CURL_ERROR_SIZE] = "";
    curl_easy_setopt(curl, CURLOPT_URL, address.c_str());
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
    curl_easy_setopt(curl, CURLOPT_USERAGENT, fmt::format("qiao/{}", version()).c_str());
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 20L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 64L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, static_cast<long>(options_.stall.count()));
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &Transfer::header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &Transfer::body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
    const CURLcode code = curl_easy_perform(curl);
    if (transfer.thrown) std::rethrow_exception(transfer.thrown);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &response.status);
    curl_off_t retry_after = 0;  // seconds, also where the header is a date
    if (curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &retry_after) == CURLE_OK)
      response.retry_after = std::chrono::seconds(std::clamp<curl_off_t>(retry_after, 0, kMaxRetryAfter));
    if (code != CURLE_OK) {
      if (transfer.header_bytes > kMaxHeaderBytes) {
        throw_error(ErrorKind::kInvalidInput, "{}: more than {} bytes of headers", without_query(address),
                    kMaxHeaderBytes);
      }
      throw Transient(*reason != '\0' ? reason : curl_easy_strerror(code));
    }
    if (response.status < 300 || response.status > 399 || response.status == 304) {
      if ((response.status == 200 || response.status == 206) && !announced)
        on_headers(response);  // an empty body
      return response;
    }
    address = response.location.empty() ? "" : absolute(address, response.location);
    if (address.empty()) {
      throw_error(ErrorKind::kInvalidInput, "{}: status {} without an address to go to", without_query(url),
                  response.status);
    }
  }
  throw_error(ErrorKind::kInvalidInput, "{}: redirected more than {} times", without_query(url),
              kMaxRedirects);
}

// Runs `attempt` (which returns the final answer) until it goes well.
template <typename Attempt>
void HttpClient::with_retries(const std::string& url, Attempt attempt) {
  const std::string where = without_query(url);
  std::string reason;
  std::chrono::milliseconds asked{0}, waited{0};
  int tried = 0;
  while (tried < options_.tries) {
    if (tried > 0) {
      const std::chrono::milliseconds wait =
          asked.count() > 0 ? asked : options_.retry_delay * (1 << (tried - 1));
      const auto seconds = std::chrono::ceil<std::chrono::seconds>(wait).count();
      if (wait > options_.patience - waited) {
        reason += fmt::format("; it asks to wait {} s, and all waits together are {} s at most", seconds,
                              options_.patience.count());
        break;
      }
      if (wait >= std::chrono::seconds(1) && options_.on_wait)
        options_.on_wait(fmt::format("{}; trying again in {} s", reason, seconds));
      std::this_thread::sleep_for(wait);
      waited += wait;
    }
    ++tried;
    asked = {};
    Response answer;
    try {
      answer = attempt();
    } catch (const Transient& e) {
      reason = e.what();
      continue;
    }
    const long status = answer.status;
    if (status == 200 || status == 206) return;
    if (status == 404) throw_error(ErrorKind::kNotFound, "{}: not there (404)", where);
    if (status == 401 || status == 403) {
      throw_error(ErrorKind::kInvalidInput, "{}: not allowed ({}){}", where, status,
                  options_.token.empty() ? "; a private or gated model needs a token in HF_TOKEN"
                                         : "; does the token in HF_TOKEN give access to it?");
    }
    if (status != 429 && status < 500)
      throw_error(ErrorKind::kInvalidInput, "{}: unexpected status {}", where, status);
    if (status == 429 || status == 503) asked = answer.retry_after;
    reason = fmt::format("status {}", status);
  }
  throw_error(ErrorKind::kUnavailable, "{}: gave up after {} {}: {}", where, tried,
              tried == 1 ? "try" : "tries", reason);
}

HttpText HttpClient::get(const std::string& url, size_t max_bytes) {
  HttpText text;
  with_retries(url, [&] {
    text.body.clear();
    Response response = perform(
        url, "", 0, [](const Response&) {},
        [&](std::string_view bytes) {
          if (bytes.size() > max_bytes - text.body.size()) {
            throw_error(ErrorKind::kTooLarge, "{}: the answer is over {} bytes", without_query(url),
                        max_bytes);
          }
          text.body += bytes;
        });
    const std::string next = next_of(response.link);
    text.next = next.empty() ? "" : absolute(url, next);
    if (!text.next.empty() && origin_of(text.next) != origin_of(url)) {
      throw_error(ErrorKind::kInvalidInput, "{}: its next page is on another host", without_query(url));
    }
    return response;
  });
  return text;
}

void HttpClient::download(const std::string& url, uint64_t bytes, PartialFile& file,
                          const std::function<void(uint64_t)>& tick) {
  std::filesystem::path etag_path = file.path();
  etag_path += ".etag";
  if (file.size() > bytes) file.truncate(0);
  with_retries(url, [&]() -> Response {
    std::string etag;
    if (file.size() > 0 && std::filesystem::exists(etag_path)) etag = read_file(etag_path, kMaxEtag);
    // A weak ETag may not be asked for with If-Range; then the file is fetched whole.
    if (etag.empty()) file.truncate(0);
    if (file.size() == bytes && bytes > 0) return {.status = 200};
    const uint64_t from = file.size();
    Response response = perform(
        url, etag, from,
        [&](const Response& answer) {
          if (answer.status == 206) {
            const std::string expected = fmt::format("bytes {}-{}/{}", from, bytes - 1, bytes);
            if (from == 0 || answer.content_range != expected) {
              throw_error(ErrorKind::kInvalidInput, "{}: sends range '{}', expected '{}'", without_query(url),
                          answer.content_range.substr(0, 80), expected);
            }
            return;
          }
          file.truncate(0);
          const bool strong =
              answer.etag.size() >= 2 && answer.etag.front() == '"' && answer.etag.size() <= kMaxEtag;
          if (strong) {
            write_file_atomically(etag_path, answer.etag);
          } else {
            std::filesystem::remove(etag_path);
          }
        },
        [&](std::string_view piece) {
          if (piece.size() > bytes - file.size()) {
            throw_error(ErrorKind::kInvalidInput, "{}: sends more than the {} bytes that the hub's list says",
                        without_query(url), bytes);
          }
          file.append(piece);
          tick(file.size());
        });
    if (response.status == 416) {  // what is here is no beginning of what is there
      file.truncate(0);
      throw Transient("status 416");
    }
    if ((response.status == 200 || response.status == 206) && file.size() != bytes) {
      throw Transient(fmt::format("ended after {} of {} bytes", file.size(), bytes));
    }
    return response;
  });
}

}  // namespace qiao
