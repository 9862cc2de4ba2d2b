#include "backend/cpu/kv_pages.h"

#include <cstring>
#include <memory>

#include "backend/cpu/cpu_class.h"
#include "backend/cpu/element.h"
#include "base/error.h"

namespace qiao::cpu {
namespace {

int64_t padded_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Elements [d, d + count) of a row lie every sixteenth in its group: visit(row offset, group offset, bytes)
// for each.
template <typename Visit>
void each_element(DType dtype, int64_t dim, int64_t lane, Visit visit) {
  int64_t row = 0, group = 0;
  const auto run = [&](int64_t count, int64_t bytes) {
    for (int64_t i = 0; i < count; ++i, row += bytes, group += kKeyGroup * bytes)
      visit(row, group + lane * bytes, static_cast<size_t>(bytes));
  };
  if (dtype == DType::kF8_E4M3) {
    run(1, E4m3::kScaleBytes);
    return run(dim, 1);
  }
  if (dtype != DType::kQ8_0) return run(dim, traits(dtype).block_bytes);
  for (int64_t d = 0; d < dim; d += Q8::kNumbers) {
    run(1, sizeof(Half));
    run(Q8::kNumbers, 1);
  }
}

}  // namespace

void row_to_lane(DType dtype, int64_t dim, const char* row, int64_t lane, char* group) {
  each_element(dtype, dim, lane,
               [&](int64_t from, int64_t to, size_t bytes) { std::memcpy(group + to, row + from, bytes); });
}

void lane_to_row(DType dtype, int64_t dim, const char* group, int64_t lane, char* row) {
  each_element(dtype, dim, lane,
               [&](int64_t to, int64_t from, size_t bytes) { std::memcpy(row + to, group + from, bytes); });
}

CpuKvPages::CpuKvPages(const KvPagesSpec& spec, Buffer memory, size_t values_offset)
    : KvPages(spec),
      memory_(std::move(memory)),
      values_offset_(values_offset),
      grouped_(spec.page_tokens % kKeyGroup == 0),
      pitch_(padded_dim(spec.head_dim)) {}

std::unique_ptr<KvPages> CpuBackend::do_make_kv_pages(const KvPagesSpec& spec) {
  constexpr int64_t kMost = int64_t{1} << 31;  // of heads and of D: slots * heads * dim stays below 2^63 / 8
  size_t rows = 0, key_bytes = 0, value_bytes = 0, total = 0;
  const auto bytes_of = [&](int64_t elements) {
    return static_cast<size_t>(kv_row_bytes(spec.dtype, elements));
  };
  const bool overflow = spec.kv_heads > kMost || spec.head_dim > kMost ||
                        __builtin_mul_overflow(spec.pages * spec.page_tokens, spec.kv_heads, &rows) ||
                        __builtin_mul_overflow(rows, bytes_of(spec.head_dim), &key_bytes) ||
                        __builtin_mul_overflow(rows, bytes_of(padded_dim(spec.head_dim)), &value_bytes) ||
                        __builtin_add_overflow(key_bytes, value_bytes + 64, &total) ||
                        total > static_cast<size_t>(INT64_MAX);
  if (overflow) {
    throw_error(ErrorKind::kTooLarge, "make_kv_pages: {} pages of {} tokens, {} heads of {} overflow",
                spec.pages, spec.page_tokens, spec.kv_heads, spec.head_dim);
  }
  const size_t values_offset = (key_bytes + 63) / 64 * 64;
  return std::make_unique<CpuKvPages>(spec, allocate(values_offset + value_bytes), values_offset);
}

void CpuBackend::do_export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes) {
  const auto& own = static_cast<const CpuKvPages&>(pages);
  const KvPagesSpec& spec = own.spec();
  const int64_t row = own.key_bytes();
  auto* to = reinterpret_cast<char*>(bytes);
  for (int64_t t = 0; t < spec.page_tokens; ++t) {
    for (int64_t g = 0; g < spec.kv_heads; ++g, to += 2 * row) {
      if (own.grouped()) {
        lane_to_row(spec.dtype, spec.head_dim, own.key(page, t / kKeyGroup * kKeyGroup, g), t % kKeyGroup,
                    to);
      } else {
        std::memcpy(to, own.key(page, t, g), static_cast<size_t>(row));
      }
      std::memcpy(to + row, own.value(page, t, g), static_cast<size_t>(row));
    }
  }
}

void CpuBackend::do_import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes) {
  const auto& own = static_cast<const CpuKvPages&>(pages);
  const KvPagesSpec& spec = own.spec();
  const int64_t row = own.key_bytes();
  const auto* from = reinterpret_cast<const char*>(bytes);
  for (int64_t t = 0; t < spec.page_tokens; ++t) {
    for (int64_t g = 0; g < spec.kv_heads; ++g, from += 2 * row) {
      if (own.grouped()) {
        row_to_lane(spec.dtype, spec.head_dim, from, t % kKeyGroup,
                    own.key(page, t / kKeyGroup * kKeyGroup, g));
      } else {
        std::memcpy(own.key(page, t, g), from, static_cast<size_t>(row));
      }
      char* const value = own.value(page, t, g);
      std::memcpy(value, from + row, static_cast<size_t>(row));
      std::memset(value + row, 0, static_cast<size_t>(own.value_bytes() - row));  // the padding
    }
  }
}

}  // namespace qiao::cpu
