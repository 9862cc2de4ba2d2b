// Runs the threads of a block as fibers on one CPU thread. A thread runs until it must wait for others: at a
// barrier, or at an instruction that a warp executes together. What a device leaves undefined is a fault:
// threads that wait for one that has ended, lanes of a mask at different instructions, too much shared
// memory, a copy that nobody waited for. Shared memory is NaN until it is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

struct uint3 {
  unsigned x, y, z;
};
// As the running thread sees them.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace qiao::stand_in {

inline constexpr size_t kMaxSharedBytes = 227 * 1024;
using Where = std::source_location;

// Runs every block of a launch. Empty, or what the first fault was.
std::string run_grid(dim3 grid, dim3 block, size_t shared_bytes, uint64_t schedule_seed,
                     const std::function<void()>& kernel);

// What a kernel's asynchronous copies read before it waits for the kernels before it (early.cc).
class EarlyReads {
 public:
  void add(const void* from, size_t bytes, const Where& where);
  bool empty() const { return reads_.empty(); }
  void clear() { reads_.clear(), contents_.clear(); }
  std::string changed() const;  // a read of what is other now than it was, or empty

 private:
  struct Read {
    const std::byte* from;
    size_t bytes;
    Where where;
  };
  std::vector<Read> reads_;
  std::vector<std::byte> contents_;
};
// Runs the first and the last block until all their threads wait for the kernels before: what they have read
// by then.
void look_ahead(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel,
                EarlyReads* reads);

// Called by kernels, on their fibers.

void begin_thread();  // the thread has waited for the kernel before; one that ends without is a fault
[[noreturn]] void fault(const Where& where, std::string what);
// Waits at barrier `id` for `count` threads (0: the whole block); without `wait` only arrives.
void barrier(int id, unsigned count, bool wait, const Where& where);
bool barrier_any(int id, unsigned count, bool says, const Where& where);  // barrier(), and whether any does
unsigned barrier_count(bool predicate, const Where& where);               // of a whole block: how many say so
// Every lane of `mask` hands over `mine`; the last to come calls `combine` with all of them, by lane.
using Combine = void (*)(void* const (&lanes)[32], uint32_t mask);
void together(uint32_t mask, const char* what, void* mine, Combine combine, const Where& where);
unsigned lane();
unsigned warp_index();
std::byte* dynamic_shared();
// Memory of this block that `key` names.
void* static_shared(const void* key, size_t bytes, size_t alignment, const Where& where);
bool in_shared(const void* data, size_t bytes);
// cp.async: the bytes arrive no sooner than a wait for their group.
void copy_async(void* shared, const void* global, size_t bytes, bool zero, const Where& where);
void commit_copies();
void wait_copies(int groups_left);

// mbarrier, and bulk copies: the bytes arrive no sooner than a wait for the phase that expects them. So do
// those of copy_async that arrive_with_copies counts, which leave their groups.
void arrivals_init(const void* arrivals, unsigned count, const Where& where);
void arrive(const void* arrivals, size_t expected_bytes, const Where& where);
void arrive_with_copies(const void* arrivals, const Where& where);
void wait_arrivals(const void* arrivals, unsigned parity, const Where& where);
void copy_bulk(void* shared, const void* global, size_t bytes, const void* arrivals, const Where& where);

// wgmma (warpgroup.cc), by whole warps; `sums` of a lane. A block begins and ends with no products under way.
void begin_products(size_t warp_count);
// Bulk copies may be multiplied when they are there; rows that threads have stored when these have said so.
void show_to_products();
void hide_from_products();          // a warp has waited for copies of copy_async: it is to say so itself
const char* unfinished_products();  // what is wrong as a block ends, or null
void multiply_begin(const Where& where);
struct Multiply {
  enum Type : uint8_t { kBf16, kF16, kE4m3 } type = kBf16;
  bool adds = true;         // to what is in d
  bool of_columns = false;  // rows in shared memory are B's, not B^T's
  bool operator==(const Multiply&) const = default;
};
void multiply_async(float* d, int sums, const uint32_t* a, uint64_t b, Multiply kind, const Where& where);
void multiply_commit(const Where& where);
void multiply_wait(int groups_left, const Where& where);

}  // namespace qiao::stand_in
