// Fields of a request's query ("?limit=5&order=asc"). Those that nobody asks for are let pass: clients add
// their own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "serve/http_server.h"

namespace qiao::serve {

// The first value of the name, percent-decoded. ApiError 400 naming it where it is not valid.
std::optional<std::string> query_text(const HttpRequest& request, std::string_view name);
std::optional<int64_t> query_integer(const HttpRequest& request, std::string_view name, int64_t least,
                                     int64_t most);
bool query_flag(const HttpRequest& request, std::string_view name);  // "true", "false"; false where absent

}  // namespace qiao::serve
