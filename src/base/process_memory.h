// What this process takes of the machine's memory.
#pragma once

#include <cstdint>

namespace qiao {

// Resident now, and the most so far; mapped files count where their pages are in memory. 0 where the system
// does not tell.
uint64_t resident_bytes();
uint64_t peak_resident_bytes();

// From now on what is freed in large pieces goes back to the system at once, rather than to later
// allocations: then what a process takes can be told beforehand. Of the whole process; nothing where the
// system's allocator is another.
void give_back_large_pieces();

}  // namespace qiao
