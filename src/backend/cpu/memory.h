// Memory of the CPU chip: how much there is, and big aligned pieces of it on huge pages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qiao::cpu {

inline constexpr size_t kHugePage = size_t{2} << 20;

uint64_t total_memory();  // of the machine, or the cgroup's limit where that is less
uint64_t free_memory();   // what an allocation may take now: MemAvailable, within every cgroup limit

// 64-byte aligned; from 1 MB on checked against free_memory() (Error(kTooLarge) with both sizes), from 4 MB
// on aligned to and advised for huge pages. free_aligned takes the same size.
void* allocate_aligned(size_t bytes);
void free_aligned(void* data);

}  // namespace qiao::cpu
