// attention_varlen in kF32: attention_kernel.h's tiles over packed rows of floats, four warps a block (fewer
// where sequences are shorter than that), each walking all it sees; the very blocks, parts and chunks of
// pages of F32. Three products of TF32 for each one, as attention_elements.h says. Measured: docs/h200.md.
//
// In kBF16: keys and values are rounded first, as kv_write does it, to rows in the workspace that lie as one
// page of all tokens would, and prefill's kernel over pages of BF16 walks them: heads of up to 128 in one
// product of 16 bits for each one (attention_wgmma.h on Hopper, with its limit and prediction;
// attention_half_warp.h before), wider ones in two of TF32. Rounding moves 12 bytes for each element of k and
// of v, 20 us or so for 8192 tokens of 8 heads of 128. Not yet run on a device.
#include "backend/ops/attention_varlen.h"

#include <algorithm>

#include "backend/cuda/attention_arguments.h"
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kv_pages.h"

namespace qiao::cuda {

namespace {

// The workspace in kBF16.
KvLayout rounded_rows(const AttentionVarlen& op) {
  const KvPagesSpec all{1, op.k.shape[0], op.k.shape[1], op.k.shape[2], DType::kBF16};
  return KvLayout(all, op.workspace.data);
}

}  // namespace

size_t CudaBackend::workspace_bytes(const AttentionVarlen& op) const {
  return op.compute == Compute::kBF16 ? static_cast<size_t>(rounded_rows(op).page_bytes) : 0;
}

void CudaBackend::do_attention_varlen(const AttentionVarlen& op) {
  const int64_t tokens = op.q.shape[0], sequences = op.starts.shape[0] - 1;
  refuse_wide_heads("attention_varlen", op.q.shape[2]);
  if (tokens == 0 || sequences == 0) return;
  AttentionArguments a{};
  a.q = op.q.as<float>(), a.out = op.out.as<float>();
  a.q_token = op.q.stride[0], a.q_head = op.q.stride[1];
  a.out_token = op.out.stride[0], a.out_head = op.out.stride[1];
  a.starts = op.starts.as<int32_t>();
  a.sequences = static_cast<int>(sequences), a.heads = static_cast<int>(op.q.shape[1]);
  a.kv_heads = static_cast<int>(op.k.shape[1]), a.share = a.heads / a.kv_heads,
  a.dim = static_cast<int>(op.q.shape[2]);
  a.window = static_cast<int>(std::min<int64_t>(op.window, INT32_MAX));
  a.scale = op.scale, a.soft_cap = op.soft_cap, a.causal = op.causal;
  if (op.bias.present()) a.bias = op.bias.as<float>(), a.reach = (op.bias.shape[1] + 1) / 2;
  if (op.log_sum_exp.present()) a.log_sum_exp = op.log_sum_exp.as<float>();
  const int64_t rows = tokens * a.share;
  const AttentionLaunch how{"attention_varlen",
                            0,
                            rows,
                            warps_for(rows, sequences),
                            block_shared_bytes_,
                            op.compute == Compute::kBF16,
                            multiprocessors()};
  if (how.rounded) {
    const KvLayout layout = rounded_rows(op);
    round_kv_rows(how.name, stream_, op.k, op.v, layout);
    a.pages = layout.memory;
    a.row_bytes = layout.row_bytes, a.head_bytes = layout.head_bytes, a.page_bytes = layout.page_bytes;
    a.values_offset = layout.values_offset();
    a.tiles_follow = true;
    return launch_attention_bf16(stream_, how, a);
  }
  a.k = op.k.as<float>(), a.v = op.v.as<float>();
  a.k_token = op.k.stride[0], a.k_head = op.k.stride[1];
  a.v_token = op.v.stride[0], a.v_head = op.v.stride[1];
  a.vectors = rows_of_vectors(op.k) && rows_of_vectors(op.v);
  launch_attention_f32(stream_, how, a);
}

}  // namespace qiao::cuda
