// Any bytes as JSON: refused with an Error of one line, or a value whose text is read as the same value.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "base/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr qiao::JsonLimits kLimits = {.max_bytes = size_t{1} << 20, .max_depth = 64};
  qiao::Json value;
  try {
    value = qiao::parse_json({reinterpret_cast<const char*>(data), size}, "fuzz", kLimits);
  } catch (const qiao::Error& e) {
    QIAO_ASSERT(std::string_view(e.what()).find('\n') == std::string_view::npos);
    return 0;
  }
  for (const int indent : {-1, 2})
    QIAO_ASSERT(qiao::parse_json(qiao::dump_json(value, indent), "again") == value);
  return 0;
}
