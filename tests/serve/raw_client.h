// A client of raw bytes: what is tested is what goes over the wire.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace qiao::serve {

class RawClient {
 public:
  explicit RawClient(uint16_t port, int seconds = 60) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    timeval limit{seconds, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  ~RawClient() { hang_up(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;
  void hang_up() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void send(std::string_view text) {
    EXPECT_EQ(::send(fd_, text.data(), text.size(), MSG_NOSIGNAL), ssize_t(text.size()));
  }
  // Reads until the text has come, or the peer closes, or `seconds` pass.
  std::string read_until(std::string_view end) {
    char bytes[4096];
    while (text_.find(end) == std::string::npos) {
      const ssize_t n = ::recv(fd_, bytes, sizeof bytes, 0);
      if (n <= 0) break;
      text_.append(bytes, static_cast<size_t>(n));
    }
    const size_t at = text_.find(end);
    std::string got = text_.substr(0, at == std::string::npos ? at : at + end.size());
    text_.erase(0, got.size());
    return got;
  }
  std::string read_all() { return read_until(std::string_view("\0never", 6)); }

 private:
  int fd_;
  std::string text_;
};

}  // namespace qiao::serve
