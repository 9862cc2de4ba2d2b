// Counts what a piece of code takes from the heap.
#pragma once

#include <cstdint>

namespace qiao::testing {

// Counts every operator new of this program between its making and its end.
class AllocationCounter {
 public:
  AllocationCounter();
  ~AllocationCounter();
  int64_t count() const;
};

}  // namespace qiao::testing
