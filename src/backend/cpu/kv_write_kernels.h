#pragma once

#include <cstdint>

#include "backend/ops/attention.h"

namespace qiao::cpu {

// kv_pages.h's layout in plain numbers.
struct KvTarget {
  void* keys;
  void* values;
  int64_t page_tokens, kv_heads, dim, pitch;
  bool grouped;
};

struct KvWriteKernels {
  // Tokens [begin, end) of op, into pages of the dtype.
  void (*f32)(const KvWrite& op, const KvTarget& target, int64_t begin, int64_t end);
  void (*f16)(const KvWrite& op, const KvTarget& target, int64_t begin, int64_t end);
  void (*bf16)(const KvWrite& op, const KvTarget& target, int64_t begin, int64_t end);
  void (*q8)(const KvWrite& op, const KvTarget& target, int64_t begin, int64_t end);
  void (*f8)(const KvWrite& op, const KvTarget& target, int64_t begin, int64_t end);
};
extern const KvWriteKernels kKvWriteGeneric, kKvWriteAvx2, kKvWriteAvx512;

}  // namespace qiao::cpu
