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
  std::atomic<int64_t> next{0};
  const auto take = [&](int worker) {
    for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;) {
      body(begin, std::min(begin + grain, count), worker);
    }
  };
  run_erased([](void* context, int worker) { (*static_cast<decltype(take)*>(context))(worker); },
             const_cast<void*>(static_cast<const void*>(&take)), false);
}

}  // namespace qiao
