// feed_drawn: a thread a token; a launch and no more. Measured: not yet run on a device.
#include "backend/ops/feed_drawn.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kernel.h"

namespace qiao::cuda {
namespace {

constexpr unsigned kFeedThreads = 128;

__global__ void feed_drawn_kernel(const int32_t* ids, const int32_t* from, int32_t* tokens, int64_t count) {
  begin_kernel();
  const int64_t t = int64_t{blockIdx.x} * kFeedThreads + threadIdx.x;
  if (t >= count || from[t] < 0) return;
  const int32_t id = ids[from[t]];
  tokens[t] = id < 0 ? 0 : id;
}

}  // namespace

void CudaBackend::do_feed_drawn(const FeedDrawn& op) {
  const int64_t count = op.tokens.shape[0];
  launch("feed_drawn", stream_, feed_drawn_kernel, blocks_for(count, kFeedThreads), kFeedThreads, 0,
         op.ids.as<const int32_t>(), op.from.as<const int32_t>(), op.tokens.as<int32_t>(), count);
}

}  // namespace qiao::cuda
