// The key/value memory of the CPU chip. Keys lie so that SIMD lanes hold different tokens and each lane walks
// D in order; values so that lanes hold different dimensions.
#pragma once

#include <cstdint>
#include <utility>

#include "backend/backend.h"

namespace qiao::cpu {

inline constexpr int64_t kKeyGroup = 16;  // tokens whose keys are interleaved

// Keys: [P][G][token / 16][D][token % 16] where page_tokens is a multiple of 16 (grouped), else
// [P][G][token][D]. Values: [P][G][token][pitch], pitch = D rounded up to 16 (padding is never a result).
class CpuKvPages final : public KvPages {
 public:
  // memory holds keys, then values from `values_offset` on (a multiple of 64).
  CpuKvPages(const KvPagesSpec& spec, Buffer memory, size_t values_offset);
  size_t bytes() const override { return memory_.bytes(); }

  bool grouped() const { return grouped_; }
  int64_t pitch() const { return pitch_; }
  void* keys() const { return memory_.data(); }
  void* values() const { return static_cast<char*>(memory_.data()) + values_offset_; }

  // Where element 0 of a token's key begins, in elements; element d lies d * key_step() further.
  int64_t key_index(int64_t page, int64_t offset, int64_t kv_head) const {
    const int64_t head = (page * spec().kv_heads + kv_head) * spec().page_tokens;
    if (!grouped_) return (head + offset) * spec().head_dim;
    return (head + offset / kKeyGroup * kKeyGroup) * spec().head_dim + offset % kKeyGroup;
  }
  int64_t key_step() const { return grouped_ ? kKeyGroup : 1; }
  int64_t value_index(int64_t page, int64_t offset, int64_t kv_head) const {
    return ((page * spec().kv_heads + kv_head) * spec().page_tokens + offset) * pitch_;
  }

 private:
  Buffer memory_;
  size_t values_offset_;
  bool grouped_;
  int64_t pitch_;
};

}  // namespace qiao::cpu
