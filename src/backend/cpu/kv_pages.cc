#include "backend/cpu/kv_pages.h"

#include <memory>

#include "backend/cpu/cpu_class.h"
#include "base/error.h"

namespace qiao::cpu {
namespace {

int64_t padded_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

}  // namespace

CpuKvPages::CpuKvPages(const KvPagesSpec& spec, Buffer memory, size_t values_offset)
    : KvPages(spec),
      memory_(std::move(memory)),
      values_offset_(values_offset),
      grouped_(spec.page_tokens % kKeyGroup == 0),
      pitch_(padded_dim(spec.head_dim)) {}

std::unique_ptr<KvPages> CpuBackend::do_make_kv_pages(const KvPagesSpec& spec) {
  constexpr int64_t kMost = int64_t{1} << 31;  // of heads and of D: slots * heads * dim stays below 2^63 / 8
  size_t rows = 0, key_bytes = 0, value_bytes = 0, total = 0;
  const size_t element = static_cast<size_t>(traits(spec.dtype).block_bytes);
  const bool overflow =
      spec.kv_heads > kMost || spec.head_dim > kMost ||
      __builtin_mul_overflow(spec.pages * spec.page_tokens, spec.kv_heads, &rows) ||
      __builtin_mul_overflow(rows, static_cast<size_t>(spec.head_dim) * element, &key_bytes) ||
      __builtin_mul_overflow(rows, static_cast<size_t>(padded_dim(spec.head_dim)) * element, &value_bytes) ||
      __builtin_add_overflow(key_bytes, value_bytes + 64, &total) || total > static_cast<size_t>(INT64_MAX);
  if (overflow) {
    throw_error(ErrorKind::kTooLarge, "make_kv_pages: {} pages of {} tokens, {} heads of {} overflow",
                spec.pages, spec.page_tokens, spec.kv_heads, spec.head_dim);
  }
  const size_t values_offset = (key_bytes + 63) / 64 * 64;
  return std::make_unique<CpuKvPages>(spec, allocate(values_offset + value_bytes), values_offset);
}

}  // namespace qiao::cpu
