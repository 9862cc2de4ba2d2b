// attention_paged: who takes which sequence (attention_kernel.h has the plan of the rest).
// Lengths are the device's, so what the host chooses follows from shapes alone: how many chunks of a
// sequence may be computed apart is bounded by what the workspace holds, and longer sequences are walked
// whole, which leaves the same bits.
#include "backend/ops/attention.h"

#include <algorithm>

#include "backend/cuda/attention_arguments.h"
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kv_pages.h"

namespace qiao::cuda {
namespace {

constexpr int64_t kSplitBytes = int64_t{128} << 20;  // of the workspace: 8192 rows of 128 at 7800 keys
constexpr int kSplitQueries = 8;                     // where a batch is not one query a sequence

// What follows from shapes.
struct PagedPlan {
  int split_queries, slots;
  int64_t rows, width;  // rows that may be split, floats of each

  explicit PagedPlan(const AttentionPaged& op) {
    const KvPagesSpec& spec = op.pages->spec();
    const int64_t tokens = op.q.shape[0], sequences = op.page_table.shape[0];
    split_queries = tokens > sequences ? kSplitQueries : 1;
    rows = std::max<int64_t>(1, sequences * split_queries * op.q.shape[1]);
    width = ceil_div(spec.head_dim, 8) * 8;
    int64_t chunks = ceil_div(op.page_table.shape[1] * spec.page_tokens, kChunkKeys);
    if (op.window > 0) chunks = std::min(chunks, ceil_div(op.window + split_queries, kChunkKeys) + 1);
    slots = static_cast<int>(
        std::clamp<int64_t>(kSplitBytes / (rows * (width + 2) * 4), 1, std::max<int64_t>(1, chunks)));
    if (sequences * spec.kv_heads > int64_t{kMostTickets}) slots = 1;  // they fill any device
  }
  int64_t floats() const { return slots > 1 ? rows * slots * (width + 2) : 0; }
};

}  // namespace

size_t CudaBackend::workspace_bytes(const AttentionPaged& op) const {
  return static_cast<size_t>(PagedPlan(op).floats()) * sizeof(float);
}

void CudaBackend::do_attention_paged(const AttentionPaged& op) {
  const int64_t tokens = op.q.shape[0], sequences = op.page_table.shape[0];
  if (tokens == 0 || sequences == 0) return;
  const PagedPlan plan(op);
  const auto& pages = static_cast<const CudaKvPages&>(*op.pages);
  const KvLayout layout = pages.layout();
  AttentionArguments a{};
  a.q = op.q.as<float>(), a.out = op.out.as<float>();
  a.q_token = op.q.stride[0], a.q_head = op.q.stride[1];
  a.out_token = op.out.stride[0], a.out_head = op.out.stride[1];
  a.pages = layout.memory;
  a.row_bytes = layout.row_bytes, a.head_bytes = layout.head_bytes, a.page_bytes = layout.page_bytes;
  a.values_offset = layout.values_offset(), a.scales_offset = layout.scales_offset();
  a.page_tokens = layout.page_tokens;
  a.early = pages.others_are_there(tokens, stream_.holds());
  a.table = op.page_table.as<int32_t>(), a.table_row = op.page_table.stride[0];
  a.lengths = op.lengths.as<int32_t>(), a.starts = op.query_starts.as<int32_t>();
  a.sequences = static_cast<int>(sequences), a.heads = static_cast<int>(op.q.shape[1]);
  a.kv_heads = layout.kv_heads, a.share = a.heads / a.kv_heads, a.dim = layout.dim;
  a.window = static_cast<int>(std::min<int64_t>(op.window, INT32_MAX));
  a.scale = op.scale, a.soft_cap = op.soft_cap, a.causal = true;
  a.slots = plan.slots, a.split_queries = plan.split_queries;
  a.tiles_follow = tokens > sequences;
  if (plan.slots > 1) {
    a.split_out = op.workspace.as<float>();
    a.split_largest = a.split_out + plan.rows * plan.slots * plan.width;
    a.split_sum = a.split_largest + plan.rows * plan.slots;
    a.tickets = tickets();
  }
  AttentionLaunch how{"attention_paged", 0, 0, kMostWarps, block_shared_bytes_, op.compute == Compute::kBF16,
                      multiprocessors()};
  const bool one_long = sequences == 1 && tokens > plan.split_queries;  // none is split
  const int64_t chunks = sequences * plan.slots * layout.kv_heads;
  if (!one_long) how.chunks = static_cast<unsigned>(std::min<int64_t>(chunks, INT32_MAX));
  how.tile_rows = tokens * a.share;
  switch (op.pages->spec().dtype) {
    case DType::kF32:
      launch_attention_f32(stream_, how, a);
      break;
    case DType::kF16:
      launch_attention_f16(stream_, how, a);
      break;
    case DType::kBF16:
      launch_attention_bf16(stream_, how, a);
      break;
    case DType::kF8_E4M3:
      launch_attention_f8(stream_, how, a);
      break;
    default:
      launch_attention_q8(stream_, how, a);
  }
}

}  // namespace qiao::cuda
