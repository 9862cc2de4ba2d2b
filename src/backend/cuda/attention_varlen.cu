// attention_varlen: attention_kernel.h's tiles over packed rows of floats, four warps a block (fewer where
// sequences are shorter than that), each walking all it sees; the very blocks, parts and chunks of pages of
// F32. Three products of TF32 for each one, as attention_elements.h says. Measured: docs/h200.md.
#include "backend/ops/attention_varlen.h"

#include <algorithm>

#include "backend/cuda/attention_arguments.h"
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kv_pages.h"

namespace qiao::cuda {

void CudaBackend::do_attention_varlen(const AttentionVarlen& op) {
  const int64_t tokens = op.q.shape[0], sequences = op.starts.shape[0] - 1;
  refuse_wide_heads("attention_varlen", op.q.shape[2]);
  if (tokens == 0 || sequences == 0) return;
  AttentionArguments a{};
  a.q = op.q.as<float>(), a.out = op.out.as<float>();
  a.q_token = op.q.stride[0], a.q_head = op.q.stride[1];
  a.out_token = op.out.stride[0], a.out_head = op.out.stride[1];
  a.k = op.k.as<float>(), a.v = op.v.as<float>();
  a.k_token = op.k.stride[0], a.k_head = op.k.stride[1];
  a.v_token = op.v.stride[0], a.v_head = op.v.stride[1];
  a.vectors = rows_of_vectors(op.k) && rows_of_vectors(op.v);
  a.starts = op.starts.as<int32_t>();
  a.sequences = static_cast<int>(sequences), a.heads = static_cast<int>(op.q.shape[1]);
  a.kv_heads = static_cast<int>(op.k.shape[1]), a.share = a.heads / a.kv_heads,
  a.dim = static_cast<int>(op.q.shape[2]);
  a.window = static_cast<int>(std::min<int64_t>(op.window, INT32_MAX));
  a.scale = op.scale, a.soft_cap = op.soft_cap, a.causal = op.causal;
  if (op.bias.present()) a.bias = op.bias.as<float>(), a.reach = (op.bias.shape[1] + 1) / 2;
  if (op.log_sum_exp.present()) a.log_sum_exp = op.log_sum_exp.as<float>();
  const int64_t rows = tokens * a.share;
  const AttentionLaunch how{
      "attention_varlen", 0, rows, warps_for(rows, sequences), block_shared_bytes_, false, multiprocessors()};
  launch_attention_f32(stream_, how, a);
}

}  // namespace qiao::cuda
