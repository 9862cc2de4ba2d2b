// JSON from outside: nlohmann's type with insertion order kept, and a parse that bounds depth and size.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/ordered_map.h"

namespace qiao {

using Json = nlohmann::basic_json<OrderedMap>;

struct JsonLimits {
  size_t max_bytes = size_t{256} << 20;
  size_t max_depth = 128;
};

// Parses `text`. Throws Error(kInvalidInput) "WHERE: byte N: …" for malformed text, invalid UTF-8 or nesting
// over max_depth, Error(kTooLarge) over max_bytes. `where` names the source (a path, "request body"). A
// duplicate key keeps its last value, as Python's json does.
Json parse_json(std::string_view text, std::string_view where, const JsonLimits& limits = {});

// `value` as text. Never throws: bytes that are not UTF-8 become U+FFFD. indent < 0: one line.
std::string dump_json(const Json& value, int indent = -1);

}  // namespace qiao
