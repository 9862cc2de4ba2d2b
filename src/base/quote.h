// Text from outside, made fit to stand in a one-line message.
#pragma once

#include <string>
#include <string_view>

namespace qiao {

// `text` with control characters and bytes that are not UTF-8 as \xNN, cut with "…" after `max_bytes`.
std::string printable(std::string_view text, size_t max_bytes = 80);

// The same in double quotes, with quotes and backslashes escaped.
std::string quote_text(std::string_view text, size_t max_bytes = 80);

}  // namespace qiao
