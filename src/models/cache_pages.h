// Pages of a cache as bytes: of the layers of one group (KvCache), one after another. They are of the heads
// that a rank has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "models/decoder.h"

namespace qiao {

int64_t own_page_bytes(const KvCache& cache, bool sliding);
// `bytes` has so many.
void export_own_page(Backend& backend, const KvCache& cache, int64_t page, bool sliding,
                     std::span<std::byte> bytes);
void import_own_page(Backend& backend, KvCache& cache, int64_t page, bool sliding,
                     std::span<const std::byte> bytes);

}  // namespace qiao
