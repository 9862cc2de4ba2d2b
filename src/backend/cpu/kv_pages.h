// The key/value memory of the CPU chip. Keys lie so that SIMD lanes hold different tokens and each lane walks
// D in order; values so that lanes hold different dimensions.
#pragma once

#include <cstdint>
#include <utility>

#include "backend/backend.h"

namespace qiao::cpu {

inline constexpr int64_t kKeyGroup = 16;  // tokens whose keys are interleaved

// A row of `dim` elements and its lane in a group of sixteen, of pages of this dtype.
void row_to_lane(DType dtype, int64_t dim, const char* row, int64_t lane, char* group);
void lane_to_row(DType dtype, int64_t dim, const char* group, int64_t lane, char* row);

// Keys: [P][G][token / 16][D][token % 16] where page_tokens is a multiple of 16 (grouped), else
// [P][G][token][D]. Values: [P][G][token][pitch], pitch = D rounded up to 16 (padding is never a result).
// Q8_0 (element.h): rows of blocks; in a group of keys [D / 32] times the 16 scales and [32][16] numbers.
// F8_E4M3: the scale before the row's numbers; in a group the 16 scales, then [D][16].
class CpuKvPages final : public KvPages {
 public:
  // memory holds keys, then values from `values_offset` on (a multiple of 64).
  CpuKvPages(const KvPagesSpec& spec, Buffer memory, size_t values_offset);
  size_t bytes() const override { return memory_.bytes(); }

  bool grouped() const { return grouped_; }
  int64_t pitch() const { return pitch_; }
  void* keys() const { return memory_.data(); }
  void* values() const { return static_cast<char*>(memory_.data()) + values_offset_; }

  int64_t key_bytes() const { return kv_row_bytes(spec().dtype, spec().head_dim); }  // of a token and head
  int64_t value_bytes() const { return kv_row_bytes(spec().dtype, pitch_); }

  // A token's key where keys are not grouped; where they are, `offset` is its group's first token.
  char* key(int64_t page, int64_t offset, int64_t kv_head) const {
    return static_cast<char*>(keys()) + row(page, offset, kv_head) * key_bytes();
  }
  char* value(int64_t page, int64_t offset, int64_t kv_head) const {
    return static_cast<char*>(values()) + row(page, offset, kv_head) * value_bytes();
  }

 private:
  int64_t row(int64_t page, int64_t offset, int64_t kv_head) const {
    return (page * spec().kv_heads + kv_head) * spec().page_tokens + offset;
  }
  Buffer memory_;
  size_t values_offset_;
  bool grouped_;
  int64_t pitch_;
};

}  // namespace qiao::cpu
