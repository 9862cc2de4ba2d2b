// Which block of keys meets which queries, and when: one order for attention over pages and over packed
// sequences, so that causal results are the same bits. A query walks the keys it sees in blocks of
// kBlockKeys, aligned to key 0, with one online softmax for each chunk of kChunkKeys; chunks are merged in
// ascending order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/attention_kernels.h"

namespace qiao::cpu {

inline constexpr int64_t kChunkKeys = 512;  // a multiple of kBlockKeys

// The first key that a query at this position sees. window 0: unlimited.
inline int64_t first_key(int64_t position, int64_t window) {
  return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
}

// Queries at positions [position, position + queries), `share` rows each (q and result have one row after the
// other), meet the keys they see of the block from `key` on. Queries that see the whole block go together;
// the others one by one, each with just its keys. `block` has all but its rows and range; its bias, where it
// has one, is the first row's.
inline void meet_block(void (*add)(const AttentionBlock&, const AttentionRows&), AttentionBlock block,
                       int64_t key, int64_t position, int64_t queries, int64_t share, int64_t window,
                       const AttentionRows& result) {
  const float* q = block.q;
  const float* bias = block.bias;
  for (int64_t i = 0; i < queries;) {
    const int64_t first = std::clamp<int64_t>(first_key(position + i, window) - key, 0, kBlockKeys);
    const int64_t last = std::clamp<int64_t>(position + i + 1 - key, 0, kBlockKeys);
    int64_t next = i + 1;
    if (first == 0 && last == kBlockKeys) {
      while (next < queries && first_key(position + next, window) <= key) ++next;
    }
    if (first < last) {
      const int64_t row = i * share;
      block.first = first;
      block.end = last;
      block.q = q + row * block.dim;
      block.rows = (next - i) * share;
      if (bias != nullptr) block.bias = bias + row * kBlockKeys;
      add(block, {result.largest + row, result.sum + row, result.out + row * block.pitch});
    }
    i = next;
  }
}

}  // namespace qiao::cpu
