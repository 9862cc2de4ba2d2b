#include "models/cache_pages.h"

namespace qiao {
namespace {

// Calls visit(pages of a layer, where its bytes begin) for each of the group.
template <typename Cache, typename Visit>
void each_layer(Cache& cache, bool sliding, Visit visit) {
  size_t begin = 0;
  for (int64_t layer = 0; layer < cache.layers(); ++layer) {
    if (cache.slides(layer) != sliding) continue;
    visit(cache.layer(layer), begin);
    begin += cache.layer(layer).page_bytes();
  }
}

}  // namespace

int64_t own_page_bytes(const KvCache& cache, bool sliding) {
  size_t bytes = 0;
  each_layer(cache, sliding, [&](const KvPages& pages, size_t) { bytes += pages.page_bytes(); });
  return static_cast<int64_t>(bytes);
}

void export_own_page(Backend& backend, const KvCache& cache, int64_t page, bool sliding,
                     std::span<std::byte> bytes) {
  each_layer(cache, sliding, [&](const KvPages& pages, size_t begin) {
    backend.export_kv_page(pages, page, bytes.subspan(begin, pages.page_bytes()).data());
  });
}

void import_own_page(Backend& backend, KvCache& cache, int64_t page, bool sliding,
                     std::span<const std::byte> bytes) {
  each_layer(cache, sliding, [&](KvPages& pages, size_t begin) {
    backend.import_kv_page(pages, page, bytes.subspan(begin, pages.page_bytes()).data());
  });
}

}  // namespace qiao
