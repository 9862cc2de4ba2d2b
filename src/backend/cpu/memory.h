// Memory of the CPU chip: how much there is, and big aligned pieces of it on huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace qiao::cpu {

uint64_t total_memory();  // of the machine, or the cgroup's limit where that is less
uint64_t free_memory();   // what an allocation may take now: MemAvailable, within every cgroup limit

// 64-byte aligned; from 1 MB on checked against free_memory() (Error(kTooLarge) with both sizes), from 4 MB
// on aligned to and advised for huge pages. free_aligned takes the same size.
void* allocate_aligned(size_t bytes);
void free_aligned(void* data);

// Hands out pieces of slabs of 32 MB, so that a model's many small weights share huge pages. A slab lives as
// long as any piece of it.
class Slabs {
 public:
  std::shared_ptr<std::byte> take(size_t bytes);  // 64-byte aligned

 private:
  std::shared_ptr<std::byte> slab_;
  size_t used_ = 0, size_ = 0;
};

}  // namespace qiao::cpu
