#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

namespace qiao {

template <typename Body>
void ThreadPool::parallel_for(int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (count <= grain || size() == 1) {
    body(int64_t{0}, count, 0);
    return;
  }
  // A share of the chunks for each worker, taken in order, then what others have left: so a worker reads one
  // run of memory, which prefetchers follow. More workers than kShares share them.
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  constexpr int64_t kShares = 16;
  Share shares[kShares];
  const int64_t chunks = (count + grain - 1) / grain;
  const int64_t used = std::min<int64_t>({kShares, size(), chunks});
  for (int64_t s = 0; s < used; ++s) {
    shares[s].next.store(chunks * s / used * grain, std::memory_order_relaxed);
    shares[s].end = std::min(chunks * (s + 1) / used * grain, count);
  }
  const auto take = [&](int worker) {
    for (int64_t turn = 0; turn < used; ++turn) {
      Share& share = shares[(worker + turn) % used];
      for (int64_t begin; (begin = share.next.fetch_add(grain, std::memory_order_relaxed)) < share.end;) {
        body(begin, std::min(begin + grain, share.end), worker);
      }
    }
  };
  run_erased([](void* context, int worker) { (*static_cast<decltype(take)*>(context))(worker); },
             const_cast<void*>(static_cast<const void*>(&take)), false);
}

}  // namespace qiao
