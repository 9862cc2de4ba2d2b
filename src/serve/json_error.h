// Where a body stops being JSON: a field's name helps its author more than a byte's number.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qiao::serve {

// The path of the value in which `text` stops being JSON, or nests deeper than `max_depth`, as in
// "messages[2].content"; empty outside of every field. At most 200 bytes.
std::string field_of_json_error(std::string_view text, size_t max_depth);

}  // namespace qiao::serve
