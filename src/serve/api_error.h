// Errors as OpenAI's API reports them: {"error": {"message", "type", "param", "code"}} with the right status.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/json.h"

namespace qiao::serve {

class ApiError : public std::runtime_error {
 public:
  // `param` names the field at fault, empty where there is none; `code` as OpenAI's ("model_not_found"), may
  // be empty.
  ApiError(int status, const std::string& message, std::string param = {}, std::string code = {});
  int status() const { return status_; }
  Json to_json() const;

 private:
  int status_;
  std::string param_, code_;
};

// Wrong input from a request: 400, "FIELD: message".
template <typename... Args>
[[noreturn]] void throw_bad_field(std::string_view field, fmt::format_string<Args...> format,
                                  Args&&... args) {
  throw ApiError(400, fmt::format("{}: {}", field, fmt::format(format, std::forward<Args>(args)...)),
                 std::string(field));
}

// What a lower layer threw while a request was handled. A message "field: …" gives the param.
ApiError to_api_error(const Error& error);

// The body of an error that has no ApiError (refusals of the HTTP server).
Json error_json(int status, std::string_view message, std::string_view param = {},
                std::string_view code = {});

}  // namespace qiao::serve
