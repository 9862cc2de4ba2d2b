// The one error type of Qiao. Input from outside (a file, a request, a flag) that is wrong becomes an Error
// that names its culprit: file, offset or field, and what was expected. A broken rule of our own is
// QIAO_ASSERT.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace qiao {

enum class ErrorKind {
  kInvalidInput,  // what came from outside is malformed or out of range
  kNotFound,      // a file, model, tensor or name that is not there
  kUnsupported,   // well-formed, but not something Qiao can do
  kTooLarge,      // over a stated limit, or over the memory at hand
  kIo,            // the operating system said no
  kUnavailable,   // not now: busy, shutting down, no driver
  kCancelled,     // the caller asked to stop
  kDeviceLost,    // a device failed and does nothing more for this process
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// throw_error(ErrorKind::kInvalidInput, "{}: offset {}: …", path, offset)
template <typename... Args>
[[noreturn]] void throw_error(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);

}  // namespace qiao

// A rule of our own that must hold, checked in every build. Never for input from outside.
#define QIAO_ASSERT(condition) \
  ((condition) ? void(0) : ::qiao::assertion_failed(#condition, __FILE__, __LINE__))
