#include "serve/api_error.h"

#include <algorithm>

#include "infer/engine.h"

namespace qiao::serve {
namespace {

const char* type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "unavailable_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

int status_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidInput:
    case ErrorKind::kUnsupported:
      return 400;
    case ErrorKind::kNotFound:
      return 404;
    case ErrorKind::kTooLarge:
      return 413;
    case ErrorKind::kUnavailable:
      return 503;
    case ErrorKind::kIo:
    case ErrorKind::kCancelled:
    case ErrorKind::kDeviceLost:
      break;
  }
  return 500;
}

}  // namespace

ApiError::ApiError(int status, const std::string& message, std::string param, std::string code)
    : std::runtime_error(message), status_(status), param_(std::move(param)), code_(std::move(code)) {}

Json ApiError::to_json() const { return error_json(status_, what(), param_, code_); }

Json error_json(int status, std::string_view message, std::string_view param, std::string_view code) {
  const auto or_null = [](std::string_view text) { return text.empty() ? Json(nullptr) : Json(text); };
  return {{"error",
           {{"message", message},
            {"type", type_of(status)},
            {"param", or_null(param)},
            {"code", or_null(code)}}}};
}

ApiError to_api_error(const Error& error) {
  const std::string_view message = error.what();
  const std::string_view field = message.substr(0, message.find(": "));
  const bool names_field =
      field.size() < message.size() && std::all_of(field.begin(), field.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || c == '_' || c == '.' || c == '[' || c == ']' ||
               (c >= '0' && c <= '9');
      });
  const bool too_long = field == "prompt" && message.find("do not fit the context") != std::string_view::npos;
  const bool queue_full = dynamic_cast<const QueueFull*>(&error) != nullptr;
  const int status = queue_full ? 429 : status_of(error.kind());
  return ApiError(status, error.what(), names_field && status < 500 ? std::string(field) : "",
                  too_long ? "context_length_exceeded" : "");
}

}  // namespace qiao::serve
