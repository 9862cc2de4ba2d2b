// feed_drawn: a word a sequence, on the calling thread.
#include "backend/ops/feed_drawn.h"

#include <algorithm>

#include "backend/cpu/cpu_class.h"

namespace qiao::cpu {

void CpuBackend::do_feed_drawn(const FeedDrawn& op) {
  const auto *ids = op.ids.as<int32_t>(), *from = op.from.as<int32_t>();
  auto* tokens = op.tokens.as<int32_t>();
  for (int64_t t = 0; t < op.tokens.shape[0]; ++t)
    if (from[t] >= 0) tokens[t] = std::max(ids[from[t]], 0);
}

}  // namespace qiao::cpu
