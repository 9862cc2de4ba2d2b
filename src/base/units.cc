#include "base/units.h"

#include <fmt/format.h>

#include <iterator>

namespace qiao {
namespace {

// `plain` follows a number below a thousand, `suffix` the prefix of a larger one.
std::string scaled(uint64_t whole, const char* plain, const char* suffix) {
  if (whole < 1000) return fmt::format("{}{}", whole, plain);
  constexpr const char* kPrefixes[] = {"k", "M", "G", "T", "P", "E"};
  double value = static_cast<double>(whole) / 1000;
  size_t prefix = 0;
  while (value >= 999.5 && prefix + 1 < std::size(kPrefixes)) {
    value /= 1000;
    ++prefix;
  }
  return fmt::format("{:.{}f} {}{}", value,
                     value < 9.995   ? 2
                     : value < 99.95 ? 1
                                     : 0,
                     kPrefixes[prefix], suffix);
}

}  // namespace

std::string format_bytes(uint64_t bytes) { return scaled(bytes, " B", "B"); }

std::string format_count(uint64_t count) { return scaled(count, "", ""); }

}  // namespace qiao
