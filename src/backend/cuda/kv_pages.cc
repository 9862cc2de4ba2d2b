#include "backend/cuda/kv_pages.h"

#include <cstring>
#include <vector>

#include "backend/cuda/cuda_class.h"
#include "base/error.h"

namespace qiao::cuda {
namespace {

constexpr int64_t kQ8Numbers = 32, kQ8Bytes = 34;  // of GGUF's block: F16 scale, then the numbers
constexpr int64_t kF8ScaleBytes = sizeof(float);

// A row as GGUF and other chips have it, and as it lies here; `scale`: where F8_E4M3's is.
void row_to_chip(const KvPagesSpec& spec, const std::byte* row, std::byte* chip, std::byte* scale) {
  if (spec.dtype == DType::kF8_E4M3) {
    std::memcpy(scale, row, kF8ScaleBytes);
    std::memcpy(chip, row + kF8ScaleBytes, static_cast<size_t>(spec.head_dim));
    return;
  }
  if (spec.dtype != DType::kQ8_0) {
    std::memcpy(chip, row, static_cast<size_t>(qiao::row_bytes(spec.dtype, spec.head_dim)));
    return;
  }
  for (int64_t block = 0; block < spec.head_dim / kQ8Numbers; ++block, row += kQ8Bytes) {
    std::memcpy(chip + spec.head_dim + 2 * block, row, 2);
    std::memcpy(chip + kQ8Numbers * block, row + 2, kQ8Numbers);
  }
}

void row_from_chip(const KvPagesSpec& spec, const std::byte* chip, const std::byte* scale, std::byte* row) {
  if (spec.dtype == DType::kF8_E4M3) {
    std::memcpy(row, scale, kF8ScaleBytes);
    std::memcpy(row + kF8ScaleBytes, chip, static_cast<size_t>(spec.head_dim));
    return;
  }
  if (spec.dtype != DType::kQ8_0) {
    std::memcpy(row, chip, static_cast<size_t>(qiao::row_bytes(spec.dtype, spec.head_dim)));
    return;
  }
  for (int64_t block = 0; block < spec.head_dim / kQ8Numbers; ++block, row += kQ8Bytes) {
    std::memcpy(row, chip + spec.head_dim + 2 * block, 2);
    std::memcpy(row + 2, chip + kQ8Numbers * block, kQ8Numbers);
  }
}

// Calls visit(canonical offset, offset in the page here, that of its scale) for each row.
template <class Visit>
void each_row(const KvPagesSpec& spec, Visit visit) {
  const int64_t canonical = kv_row_bytes(spec.dtype, spec.head_dim);
  const KvLayout layout(spec);
  for (int64_t t = 0; t < spec.page_tokens; ++t) {
    for (int64_t g = 0; g < spec.kv_heads; ++g) {
      for (int64_t which = 0; which < 2; ++which) {
        const int64_t head = g * layout.head_bytes, place = which * spec.page_tokens + t;
        visit(((t * spec.kv_heads + g) * 2 + which) * canonical, head + place * layout.row_bytes,
              head + layout.scales_offset() + place * kF8ScaleBytes);
      }
    }
  }
}

}  // namespace

void refuse_wide_heads(const char* op, int64_t dim) {
  if (dim <= kMostHeadDim) return;
  throw_error(ErrorKind::kUnsupported, "{}: heads are of {}, chip cuda takes up to {}", op, dim,
              kMostHeadDim);
}

KvLayout::KvLayout(const KvPagesSpec& spec, void* pages)
    : memory(static_cast<unsigned char*>(pages)),
      row_bytes(spec.dtype == DType::kQ8_0 ? spec.head_dim + 16
                                           : (spec.head_dim + 7) / 8 * 8 * qiao::row_bytes(spec.dtype, 1)),
      head_bytes(2 * spec.page_tokens * row_bytes),
      page_tokens(static_cast<int>(spec.page_tokens)),
      kv_heads(static_cast<int>(spec.kv_heads)),
      dim(static_cast<int>(spec.head_dim)) {
  if (spec.dtype == DType::kF8_E4M3) head_bytes += (2 * spec.page_tokens * kF8ScaleBytes + 15) / 16 * 16;
  page_bytes = spec.kv_heads * head_bytes;
}

std::unique_ptr<KvPages> CudaBackend::do_make_kv_pages(const KvPagesSpec& spec) {
  refuse_wide_heads("make_kv_pages", spec.head_dim);
  int64_t bytes = 0;
  if (__builtin_mul_overflow(spec.pages, spec.kv_heads, &bytes) ||
      __builtin_mul_overflow(bytes, KvLayout(spec).head_bytes, &bytes)) {
    throw_error(ErrorKind::kTooLarge, "make_kv_pages: {} pages of {} tokens, {} heads of {} overflow",
                spec.pages, spec.page_tokens, spec.kv_heads, spec.head_dim);
  }
  return std::make_unique<CudaKvPages>(spec, allocate(static_cast<size_t>(bytes)));
}

void CudaBackend::do_export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes) {
  const KvLayout layout = static_cast<const CudaKvPages&>(pages).layout();
  std::vector<std::byte> own(static_cast<size_t>(layout.page_bytes));
  download(own.data(), layout.memory + page * layout.page_bytes, own.size());
  each_row(pages.spec(), [&](int64_t canonical, int64_t at, int64_t scale) {
    row_from_chip(pages.spec(), own.data() + at, own.data() + scale, bytes + canonical);
  });
}

void CudaBackend::do_import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes) {
  const KvLayout layout = static_cast<const CudaKvPages&>(pages).layout();
  std::vector<std::byte> own(static_cast<size_t>(layout.page_bytes));  // padding is zeros
  each_row(pages.spec(), [&](int64_t canonical, int64_t at, int64_t scale) {
    row_to_chip(pages.spec(), bytes + canonical, own.data() + at, own.data() + scale);
  });
  upload(layout.memory + page * layout.page_bytes, own.data(), own.size());
}

}  // namespace qiao::cuda
