// layer_norm. As add_rms_norm (norm.cu): a row in the registers of one, 4 or 16 warps between its two sums
// and the result; memory is read once and written once (rows of more than 8192 elements three times).
#include "backend/ops/layer_norm.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/rows.h"

namespace qiao::cuda {
namespace {

struct LayerNormArguments {
  Rows x, residual, y;  // residual's data null: absent
  const float* gamma;
  const float* beta;  // null: zeros
  bool gamma_aligned, beta_aligned;
  float epsilon;
  int64_t rows, width;
};

template <int kWarps, int kKept>
__global__ void __launch_bounds__(kWarps == 1 ? 128 : 32 * kWarps) layer_norm_kernel(LayerNormArguments op) {
  begin_kernel();
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= op.rows) return;  // of a warp for itself: no barrier follows
  constexpr int64_t kStep = 4 * 32 * kWarps;
  const int64_t first = 4 * int64_t{threadIdx.x};
  const SummedRow h_row(op.x, op.residual, row, op.width);
  // h - mean of these elements; 0 beyond the row's end.
  const auto centred = [&](int64_t at, float4 h, float mean) {
    return make_float4(h.x - mean, at + 1 < op.width ? h.y - mean : 0.0f,
                       at + 2 < op.width ? h.z - mean : 0.0f, at + 3 < op.width ? h.w - mean : 0.0f);
  };
  float4 kept[kKept];
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t at = first + j * kStep;
    kept[j] = at < op.width ? h_row.four(at) : make_float4(0, 0, 0, 0);
    sum += (kept[j].x + kept[j].y) + (kept[j].z + kept[j].w);
  }
  for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) {
    const float4 h = h_row.four(at);
    sum += (h.x + h.y) + (h.z + h.w);
  }
  QIAO_SHARED(float, sums, 32);
  QIAO_SHARED(float, squares_of, 32);
  const float count = static_cast<float>(op.width);
  const float mean = block_sum<kWarps>(sum, sums) / count;
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t at = first + j * kStep;
    if (at >= op.width) continue;
    kept[j] = centred(at, kept[j], mean);
    squares = add_squares(kept[j], squares);
  }
  for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) {
    squares = add_squares(centred(at, h_row.four(at), mean), squares);
  }
  squares = block_sum<kWarps>(squares, squares_of);
  const float factor = 1.0f / sqrtf(squares / count + op.epsilon);
  float* y = op.y.row(row);
  const auto store = [&](int64_t at, float4 d) {
    const float4 g = load_four(op.gamma, at, op.width, op.gamma_aligned);
    float4 v = make_float4(d.x * factor * g.x, d.y * factor * g.y, d.z * factor * g.z, d.w * factor * g.w);
    if (op.beta != nullptr) v = add(v, load_four(op.beta, at, op.width, op.beta_aligned));
    store_four(y, at, op.width, op.y.aligned, v);
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t at = first + j * kStep;
    if (at < op.width) store(at, kept[j]);
  }
  for (int64_t at = first + kKept * kStep; at < op.width; at += kStep)
    store(at, centred(at, h_row.four(at), mean));
}

}  // namespace

void CudaBackend::do_layer_norm(const LayerNorm& op) {
  LayerNormArguments a{rows_of(op.x), rows_of(op.residual), rows_of(op.y)};
  a.gamma = op.gamma.as<float>();
  a.beta = op.beta.present() ? op.beta.as<float>() : nullptr;
  a.gamma_aligned = aligned_16(a.gamma), a.beta_aligned = aligned_16(a.beta);
  a.epsilon = op.epsilon;
  a.rows = op.x.shape[0], a.width = op.x.shape[1];
  for_width(a.width, [&](auto warps, auto kept) {
    const dim3 block = row_block(warps);
    launch("layer_norm", stream_, layer_norm_kernel<warps(), kept()>, blocks_for(a.rows, block.y), block, 0,
           a);
  });
}

}  // namespace qiao::cuda
