// What this process takes of the machine's memory.
#pragma once

#include <cstdint>

namespace qiao {

// Resident now, and the most so far; mapped files count where their pages are in memory. 0 where the system
// does not tell.
uint64_t resident_bytes();
uint64_t peak_resident_bytes();

}  // namespace qiao
