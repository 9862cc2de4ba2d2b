// Part of the law (reference_class.h): feed_drawn.
#include "backend/ops/feed_drawn.h"

#include <algorithm>

#include "backend/reference/reference_class.h"

namespace qiao::reference {

void ReferenceBackend::do_feed_drawn(const FeedDrawn& op) {
  for (int64_t t = 0; t < op.tokens.shape[0]; ++t) {
    const int32_t from = op.from.as<int32_t>()[t];
    if (from >= 0) op.tokens.as<int32_t>()[t] = std::max(op.ids.as<int32_t>()[from], 0);
  }
}

}  // namespace qiao::reference
