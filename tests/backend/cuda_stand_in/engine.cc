#include "backend/cuda_stand_in/engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstring>
#include <vector>

#include "base/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace qiao::stand_in {
namespace {

namespace context = boost::context::detail;

constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kGuardBytes = 1024;
// More than the first must be asked for, which launch_kernel does for more of dynamic memory than the second.
constexpr size_t kUnaskedSharedBytes = 48 * 1024, kUnaskedDynamicBytes = 32 * 1024;
constexpr int kBarriers = 16;
constexpr unsigned char kPoison = 0xff;  // a NaN in every format, -1 as an integer

struct Copy {
  std::byte* to;
  const std::byte* from;  // null: zeros
  size_t bytes;
};

struct Thread {
  uint3 index{};
  context::fcontext_t at = nullptr;  // where it waits
  size_t stack = 0;
  bool begun = false, ended = false;
  Where where;
  const char* waits_for = nullptr;
  bool predicate = false;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open_group;
};

struct Warp {
  void* mine[32] = {};
  const char* what[32] = {};
  uint32_t mask[32] = {};
  uint32_t arrived = 0;
};

struct Barrier {
  unsigned arrived = 0, count = 0;
  bool any_says = false, any_said = false;  // of those that have come, and of the last ones that were all
  std::vector<unsigned> waiting;
  Where where;
};

// An mbarrier. A phase that could end does so when somebody sees it end: its copies land then.
struct Arrivals {
  const void* at;
  unsigned count, left, phase = 0;
  size_t expected = 0, coming = 0;  // bytes of the open phase
  std::vector<Copy> copies;
  std::vector<unsigned> waiting;
  bool by_threads = false;  // copies by copy_async have come with it

  bool can_end() const { return left == 0 && expected == coming; }
};

struct SharedVariable {
  const void* key;
  std::byte* data;
};

// Everything of the block that runs. One launch at a time runs in the process (runtime.cc holds a lock).
struct Block {
  const std::function<void()>* kernel = nullptr;
  unsigned count = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];
  std::vector<Arrivals> arrivals;
  std::vector<unsigned> order;  // in which threads begin
  size_t begun = 0;
  unsigned ended = 0;
  std::vector<unsigned> ready, next_ready;
  std::vector<size_t> free_stacks;
  unsigned current = 0;
  context::fcontext_t scheduler = nullptr;
  std::string fault;
  std::byte* shared = nullptr;
  size_t dynamic_bytes = 0, shared_bytes = 0;
  std::vector<SharedVariable> variables;
  unsigned said_yes = 0;
  EarlyReads* early = nullptr;  // of look_ahead
};
Block block;

std::byte* stacks() {
  static std::byte* memory = [] {
    void* mapped = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    QIAO_ASSERT(mapped != MAP_FAILED);
    // The lowest page of each stack ends the process that would grow into its neighbour.
    for (size_t i = 0; i < kMaxThreads; ++i) {
      mprotect(static_cast<std::byte*>(mapped) + i * kStackBytes, 4096, PROT_NONE);
    }
    return static_cast<std::byte*>(mapped);
  }();
  return memory;
}

std::byte* shared_arena() {
  static std::vector<std::byte> memory(kMaxSharedBytes + 2 * kGuardBytes + 1024);
  auto address = reinterpret_cast<uintptr_t>(memory.data()) + kGuardBytes;
  return reinterpret_cast<std::byte*>((address + 1023) & ~uintptr_t{1023});
}

// The sanitizer is told which stack it is on.
#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
void leave_for_fiber(void** fake, size_t stack) {
  __sanitizer_start_switch_fiber(fake, stacks() + stack * kStackBytes + 4096, kStackBytes - 4096);
}
void come_back(void* fake) { __sanitizer_finish_switch_fiber(fake, nullptr, nullptr); }
void enter_fiber() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes); }
void leave_for_scheduler(void** fake) {
  __sanitizer_start_switch_fiber(fake, scheduler_stack, scheduler_stack_bytes);
}
void fresh_stack(size_t stack) {
  __asan_unpoison_memory_region(stacks() + stack * kStackBytes + 4096, kStackBytes - 4096);
}
#else
void leave_for_fiber(void**, size_t) {}
void come_back(void*) {}
void enter_fiber() {}
void leave_for_scheduler(void**) {}
void fresh_stack(size_t) {}
#endif

// Good until it was called three times more: the stack of a thread with a fault is left as it is, and a
// string on it would never be freed.
const char* place(const Where& where) {
  static char texts[4][128];
  static size_t next = 0;
  char* text = texts[next++ % 4];
  const std::string_view file = where.file_name();
  *fmt::format_to_n(text, sizeof(texts[0]) - 1, "{}:{}", file.substr(file.rfind('/') + 1), where.line()).out =
      0;
  return text;
}

// From a fiber to the scheduler; returns when the thread may go on.
void yield() {
  void* fake = nullptr;
  leave_for_scheduler(&fake);
  const context::transfer_t back = context::jump_fcontext(block.scheduler, nullptr);
  come_back(fake);
  block.scheduler = back.fctx;
}

void wait_for(const char* what, const Where& where) {
  Thread& self = block.threads[block.current];
  self.waits_for = what;
  self.where = where;
  yield();
}

void run_thread(unsigned thread) {
  block.current = thread;
  threadIdx = block.threads[thread].index;
  (*block.kernel)();
  Thread& self = block.threads[block.current];
  const auto has_copies = [](const std::vector<Copy>& group) { return !group.empty(); };
  if (has_copies(self.open_group) || std::any_of(self.groups.begin(), self.groups.end(), has_copies)) {
    fault(Where::current(), fmt::format("thread {} ends with copies that it has not waited for", thread));
  }
  if (!self.begun) {
    fault(Where::current(),
          fmt::format("thread {} ends without having waited for the kernel before (begin_kernel)", thread));
  }
  self.ended = true;
  ++block.ended;
}

// A fiber runs one thread after the other until there is none that has not begun.
void fiber(context::transfer_t from) {
  enter_fiber();
  block.scheduler = from.fctx;
  const auto stack = reinterpret_cast<size_t>(from.data);
  while (block.begun < block.order.size()) {
    const unsigned thread = block.order[block.begun++];
    block.threads[thread].stack = stack;
    run_thread(thread);
  }
  block.free_stacks.push_back(stack);
  leave_for_scheduler(nullptr);
  context::jump_fcontext(block.scheduler, nullptr);
}

// The scheduler's side: `to` runs until it waits or ends; where it waits is kept.
void resume(context::fcontext_t to, size_t stack, void* data) {
  void* fake = nullptr;
  leave_for_fiber(&fake, stack);
  const context::transfer_t back = context::jump_fcontext(to, data);
  come_back(fake);
  block.threads[block.current].at = back.fctx;
}

// What the block before used holds nothing any more.
void poison_shared(size_t dynamic_bytes) {
  const size_t dirty = block.shared == nullptr ? kMaxSharedBytes : block.shared_bytes;
  block.shared = shared_arena();
  std::memset(block.shared - kGuardBytes, kPoison, dirty + 2 * kGuardBytes);
  block.dynamic_bytes = dynamic_bytes;
  block.shared_bytes = (dynamic_bytes + 127) / 128 * 128;
  block.variables.clear();
}

// Lanes are dealt out anew in each block: ascending, descending, by warps, or shuffled.
void order_threads(uint64_t seed, uint64_t number) {
  block.order.resize(block.count);
  for (unsigned i = 0; i < block.count; ++i) block.order[i] = i;
  if (seed == 0) return;
  uint64_t state = (seed + number) * 0x9E3779B97F4A7C15u;
  const auto draw = [&] {
    state ^= state >> 30, state *= 0xBF58476D1CE4E5B9u, state ^= state >> 27;
    return state += 0x9E3779B97F4A7C15u;
  };
  switch (draw() % 4) {
    case 0:
      break;
    case 1:
      std::reverse(block.order.begin(), block.order.end());
      break;
    case 2:
      std::rotate(block.order.begin(), block.order.begin() + static_cast<int64_t>(draw() % block.count),
                  block.order.end());
      break;
    default:
      for (size_t i = block.count - 1; i > 0; --i) std::swap(block.order[i], block.order[draw() % (i + 1)]);
  }
}

std::string who_waits() {
  std::string text =
      fmt::format("{} of {} threads ended, the others wait for ever:", block.ended, block.count);
  int told = 0;
  for (unsigned i = 0; i < block.count && told < 4; ++i) {
    const Thread& t = block.threads[i];
    if (t.ended || (i > 0 && !block.threads[i - 1].ended && block.threads[i - 1].waits_for == t.waits_for &&
                    block.threads[i - 1].where.line() == t.where.line())) {
      continue;
    }
    text += fmt::format(" thread {} at {} ({})", i, place(t.where), t.waits_for);
    ++told;
  }
  return text;
}

void run_block(uint64_t seed, uint64_t number) {
  for (unsigned i = 0; i < block.count; ++i) {
    Thread& t = block.threads[i];
    t.ended = false;
    t.groups.clear(), t.open_group.clear();
    t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  }
  for (Warp& warp : block.warps) warp.arrived = 0;
  for (Barrier& barrier : block.barriers) barrier = {};
  block.arrivals.clear();
  begin_products(block.warps.size());
  poison_shared(block.dynamic_bytes);
  order_threads(seed, number);
  block.begun = block.ended = 0;
  block.said_yes = 0;
  block.ready.clear(), block.next_ready.clear();
  block.free_stacks.clear();
  for (size_t i = block.count; i > 0; --i) block.free_stacks.push_back(i - 1);
  while (block.ended < block.count && block.fault.empty()) {
    if (block.begun < block.count) {
      const size_t stack = block.free_stacks.back();
      block.free_stacks.pop_back();
      // Stacks begin in different lines of the cache, which else would hold a few of them alone.
      const size_t colour = stack % 61 * 320;
      std::byte* top = stacks() + (stack + 1) * kStackBytes - colour;
      resume(context::make_fcontext(top, kStackBytes - 4096 - colour, fiber), stack,
             reinterpret_cast<void*>(stack));
      continue;
    }
    if (block.next_ready.empty()) {
      if (block.early == nullptr) block.fault = who_waits();
      break;
    }
    std::swap(block.ready, block.next_ready);
    block.next_ready.clear();
    if ((seed + number) % 2 == 1) std::reverse(block.ready.begin(), block.ready.end());
    for (size_t i = 0; i < block.ready.size() && block.fault.empty(); ++i) {
      const unsigned thread = block.ready[i];
      block.current = thread;
      threadIdx = block.threads[thread].index;
      resume(block.threads[thread].at, block.threads[thread].stack, nullptr);
    }
  }
  if (!block.fault.empty() || block.early != nullptr) {  // what its fibers hold on their stacks is nobody's
    for (size_t i = 0; i < block.count; ++i) fresh_stack(i);
    return;
  }
  for (const Arrivals& a : block.arrivals) {
    if (!a.copies.empty()) block.fault = "a block ends with copies that nobody has waited for";
  }
  if (const char* what = unfinished_products(); what != nullptr) block.fault = what;
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (block.shared[-1 - static_cast<int64_t>(i)] != std::byte{kPoison} ||
        block.shared[block.shared_bytes + i] != std::byte{kPoison}) {
      block.fault = "shared memory was written beyond its end";
      return;
    }
  }
}

void release(std::vector<unsigned>* waiting) {
  for (const unsigned thread : *waiting) {
    if (thread != block.current) block.next_ready.push_back(thread);
  }
  waiting->clear();
}

void land(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
}

Arrivals& arrivals_at(const void* at, const Where& where) {
  for (Arrivals& a : block.arrivals) {
    if (a.at == at) return a;
  }
  fault(where, "an mbarrier that nobody has made");
}

void set_up(dim3 threads, size_t shared_bytes, const std::function<void()>& kernel) {
  const unsigned count = threads.x * threads.y * threads.z;
  block.kernel = &kernel;
  block.count = count;
  block.threads.resize(count);
  block.warps.resize(count / 32);
  block.dynamic_bytes = shared_bytes;
  block.fault.clear();
  blockDim = threads;
}
uint3 index_of(uint64_t number) {
  return {static_cast<unsigned>(number % gridDim.x), static_cast<unsigned>(number / gridDim.x % gridDim.y),
          static_cast<unsigned>(number / gridDim.x / gridDim.y)};
}

void end_phase(Arrivals& a) {
  land(a.copies);
  a.copies.clear();
  a.left = a.count, a.expected = a.coming = 0;
  ++a.phase;
}

}  // namespace

void begin_thread() {
  block.threads[block.current].begun = true;
  if (block.early != nullptr) yield();  // for ever
}

void fault(const Where& where, std::string what) {
  block.fault = fmt::format("{}: {} (block {} {} {}, thread {} {} {})", place(where), what, blockIdx.x,
                            blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  std::string().swap(what);  // nothing on this stack is destroyed any more
  yield();
  __builtin_unreachable();
}

std::string run_grid(dim3 grid, dim3 threads, size_t shared_bytes, uint64_t schedule_seed,
                     const std::function<void()>& kernel) {
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > kMaxThreads || count % 32 != 0) {
    return fmt::format("a block of {} threads, expected whole warps of 32, at most {}", count, kMaxThreads);
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return fmt::format("a grid of {} {} {} blocks", grid.x, grid.y, grid.z);
  }
  if (shared_bytes > kMaxSharedBytes) {
    return fmt::format("{} bytes of shared memory, at most {} can be had", shared_bytes, kMaxSharedBytes);
  }
  set_up(threads, shared_bytes, kernel);
  gridDim = grid;
  // One after the other, in some launches from the last one on.
  const bool backwards = schedule_seed * 0x9E3779B97F4A7C15u >> 63 != 0;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t number = 0; number < blocks; ++number) {
    blockIdx = index_of(backwards ? blocks - 1 - number : number);
    run_block(schedule_seed, number);
    if (!block.fault.empty()) return block.fault;
  }
  return {};
}

void look_ahead(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& kernel,
                EarlyReads* reads) {
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > kMaxThreads || count % 32 != 0 || shared_bytes > kMaxSharedBytes) return;
  set_up(threads, shared_bytes, kernel);
  gridDim = grid;
  block.early = reads;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  // The last one too, but where the first reads nothing none does.
  for (const uint64_t number : {uint64_t{0}, blocks - 1}) {
    if (number > 0 && reads->empty()) break;
    blockIdx = index_of(number);
    run_block(0, number);
    if (!block.fault.empty() || blocks == 1) break;  // a fault comes again when the kernel runs
  }
  block.early = nullptr;
}

void barrier(int id, unsigned count, bool wait, const Where& where) {
  if (count == 0) count = block.count;
  if (id < 0 || id >= kBarriers || count % 32 != 0 || count > block.count) {
    fault(where, fmt::format("barrier {} of {} threads", id, count));
  }
  Barrier& b = block.barriers[id];
  if (b.arrived == 0) {
    b.count = count, b.where = where;
  } else if (b.count != count || (id == 0 && b.where.line() != where.line())) {
    fault(where, fmt::format("barrier {} of {} threads, where others came to it at {} for {}", id, count,
                             place(b.where), b.count));
  }
  ++b.arrived;
  if (b.arrived == b.count) {
    b.arrived = 0;
    release(&b.waiting);
    return;
  }
  if (!wait) return;
  b.waiting.push_back(block.current);
  wait_for("a barrier", where);
}

bool barrier_any(int id, unsigned count, bool says, const Where& where) {
  Barrier& b = block.barriers[id];
  b.any_says |= says;
  if (b.arrived + 1 == count) b.any_said = b.any_says, b.any_says = false;
  barrier(id, count, true, where);
  return b.any_said;  // nobody comes a second time before all have gone on
}

unsigned barrier_count(bool predicate, const Where& where) {
  // Two barriers: none may begin to count again before all have read.
  block.said_yes += predicate ? 1 : 0;
  barrier(0, 0, true, where);
  const unsigned count = block.said_yes;
  barrier(0, 0, true, where);
  block.said_yes = 0;
  return count;
}

void together(uint32_t mask, const char* what, void* mine, Combine combine, const Where& where) {
  const unsigned self = block.current % 32;
  Warp& warp = block.warps[block.current / 32];
  if ((mask >> self & 1) == 0) fault(where, fmt::format("{}: the mask is without its own lane", what));
  warp.mine[self] = mine;
  warp.what[self] = what;
  warp.mask[self] = mask;
  warp.arrived |= uint32_t{1} << self;
  const unsigned first = block.current / 32 * 32;
  block.threads[block.current].where = where;
  if ((warp.arrived & mask) != mask) {
    wait_for(what, where);
    return;
  }
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1) == 0) continue;
    if (warp.mask[i] != mask || std::strcmp(warp.what[i], what) != 0 ||
        block.threads[first + i].where.line() != where.line()) {
      fault(where, fmt::format("{} of lanes {:#010x}, where lane {} is at {}: {} of lanes {:#010x}", what,
                               mask, i, place(block.threads[first + i].where), warp.what[i], warp.mask[i]));
    }
  }
  combine(warp.mine, mask);
  warp.arrived &= ~mask;
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1) != 0 && i != self) block.next_ready.push_back(first + i);
  }
}

unsigned lane() { return block.current % 32; }
unsigned warp_index() { return block.current / 32; }

std::byte* dynamic_shared() { return block.shared; }

void* static_shared(const void* key, size_t bytes, size_t alignment, const Where& where) {
  for (const SharedVariable& variable : block.variables) {
    if (variable.key == key) return variable.data;
  }
  const size_t begin = (block.shared_bytes + alignment - 1) / alignment * alignment;
  // On a device dynamic memory follows static, from a multiple of 1024 on.
  const size_t of_variables = begin + bytes - (block.dynamic_bytes + 127) / 128 * 128;
  const size_t all =
      block.dynamic_bytes == 0 ? of_variables : (of_variables + 1023) / 1024 * 1024 + block.dynamic_bytes;
  const size_t most = block.dynamic_bytes > kUnaskedDynamicBytes ? kMaxSharedBytes : kUnaskedSharedBytes;
  if (all > most) fault(where, fmt::format("{} bytes of shared memory, at most {} can be had", all, most));
  block.variables.push_back({key, block.shared + begin});
  block.shared_bytes = begin + bytes;
  return block.variables.back().data;
}

bool in_shared(const void* data, size_t bytes) {
  const auto* begin = static_cast<const std::byte*>(data);
  const bool dynamic = begin >= block.shared && begin + bytes <= block.shared + block.dynamic_bytes;
  return dynamic || (!block.variables.empty() && begin >= block.variables.front().data &&
                     begin + bytes <= block.shared + block.shared_bytes);
}

void copy_async(void* shared, const void* global, size_t bytes, bool zero, const Where& where) {
  if (!in_shared(shared, bytes)) fault(where, "an asynchronous copy to what is not shared memory");
  const bool aligned = reinterpret_cast<uintptr_t>(shared) % bytes == 0 &&
                       (zero || reinterpret_cast<uintptr_t>(global) % bytes == 0);
  if (!aligned)
    fault(where, fmt::format("an asynchronous copy of {} bytes that is not aligned to them", bytes));
  if (block.early != nullptr && !zero) block.early->add(global, bytes, where);
  std::memset(shared, kPoison, bytes);
  block.threads[block.current].open_group.push_back(
      {static_cast<std::byte*>(shared), zero ? nullptr : static_cast<const std::byte*>(global), bytes});
}

void commit_copies() {
  Thread& self = block.threads[block.current];
  self.groups.push_back(std::move(self.open_group));
  self.open_group.clear();
}

void wait_copies(int groups_left) {
  std::vector<std::vector<Copy>>& groups = block.threads[block.current].groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    land(groups.front());
    groups.erase(groups.begin());
  }
}

void arrivals_init(const void* at, unsigned count, const Where& where) {
  if (!in_shared(at, 8) || reinterpret_cast<uintptr_t>(at) % 8 != 0 || count == 0) {
    fault(where, "an mbarrier that is not 8 aligned bytes of shared memory, or of no arrivals");
  }
  for (const Arrivals& a : block.arrivals) {
    if (a.at == at) fault(where, "an mbarrier that is made twice");
  }
  block.arrivals.push_back({at, count, count, 0, 0, 0, {}, {}, false});
}

void arrive(const void* at, size_t expected_bytes, const Where& where) {
  Arrivals& a = arrivals_at(at, where);
  if (a.can_end()) end_phase(a);
  if (a.left == 0) fault(where, "an arrival beyond those that an mbarrier's open phase counts");
  --a.left;
  a.expected += expected_bytes;
  if (a.can_end()) release(&a.waiting);
}

void arrive_with_copies(const void* at, const Where& where) {
  Arrivals& a = arrivals_at(at, where);
  if (a.can_end()) end_phase(a);
  Thread& self = block.threads[block.current];
  self.groups.push_back(std::move(self.open_group));
  self.open_group.clear();
  for (const std::vector<Copy>& group : self.groups) {
    a.copies.insert(a.copies.end(), group.begin(), group.end());
  }
  self.groups.clear();
  a.by_threads = true;
  arrive(at, 0, where);
}

void wait_arrivals(const void* at, unsigned parity, const Where& where) {
  for (;;) {
    Arrivals& a = arrivals_at(at, where);
    const bool ends = a.can_end();
    if (((a.phase + (ends ? 1 : 0)) & 1) != parity) {
      if (ends) end_phase(a);
      if (a.by_threads) hide_from_products();
      return;
    }
    a.waiting.push_back(block.current);
    wait_for("an mbarrier", where);
  }
}

void copy_bulk(void* shared, const void* global, size_t bytes, const void* at, const Where& where) {
  Arrivals& a = arrivals_at(at, where);
  if (!in_shared(shared, bytes)) fault(where, "a bulk copy to what is not shared memory");
  if (bytes == 0 ||
      (bytes | reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0) {
    fault(where, fmt::format("a bulk copy of {} bytes, expected multiples of 16 on both sides", bytes));
  }
  if (a.can_end()) end_phase(a);
  if (block.early != nullptr) block.early->add(global, bytes, where);
  show_to_products();
  std::memset(shared, kPoison, bytes);
  a.copies.push_back({static_cast<std::byte*>(shared), static_cast<const std::byte*>(global), bytes});
  a.coming += bytes;
  if (a.can_end()) release(&a.waiting);
}

}  // namespace qiao::stand_in
