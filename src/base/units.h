// Quantities as a person reads them: decimal units, three digits.
#pragma once

#include <cstdint>
#include <string>

namespace qiao {

std::string format_bytes(uint64_t bytes);  // "17 B", "92.9 MB"
std::string format_count(uint64_t count);  // "17", "49.2 k", "135 M", "1.54 G"

}  // namespace qiao
