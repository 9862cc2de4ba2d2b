#include "models/allocation_counter.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<bool> is_counting = false;
std::atomic<int64_t> allocations = 0;

}  // namespace

void* operator new(size_t bytes) {
  if (is_counting) ++allocations;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
// std::stable_sort's buffer comes from this one and goes through the delete below.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  if (is_counting) ++allocations;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace qiao::testing {

AllocationCounter::AllocationCounter() {
  allocations = 0;
  is_counting = true;
}
AllocationCounter::~AllocationCounter() { is_counting = false; }
int64_t AllocationCounter::count() const { return allocations; }

}  // namespace qiao::testing
