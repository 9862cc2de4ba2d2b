// add_rms_norm and its way back. A row belongs to one warp (up to 512 elements), 4 or 16 warps, as its width
// alone says. Each thread keeps its elements in registers between the sum and the results, so memory is read
// once and written once; what does not fit (rows of more than 8192) is read again. Limited by the memory's
// bandwidth. Sums: a thread adds its elements up in ascending order, then the threads fold pairwise.
#include "backend/ops/norm.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/rows.h"

namespace qiao::cuda {
namespace {

struct NormArguments {
  Rows x, residual, y, residual_out;  // data null: absent
  const float* gamma;                 // null: ones
  bool gamma_aligned;
  float gamma_offset, epsilon;
  int64_t rows, width;
};

// gamma + offset, from element `at` on.
__device__ float4 gain(const float* gamma, bool aligned, float offset, int64_t at, int64_t width) {
  const float4 g = gamma == nullptr ? make_float4(1, 1, 1, 1) : load_four(gamma, at, width, aligned);
  return make_float4(g.x + offset, g.y + offset, g.z + offset, g.w + offset);
}

template <int kWarps, int kKept>
__global__ void __launch_bounds__(kWarps == 1 ? 128 : 32 * kWarps) norm_forward(NormArguments op) {
  begin_kernel();
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= op.rows) return;  // of a warp for itself: no barrier follows
  constexpr int64_t kStep = 4 * 32 * kWarps;
  const int64_t first = 4 * int64_t{threadIdx.x};
  const SummedRow h_row(op.x, op.residual, row, op.width);
  float4 kept[kKept];
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t at = first + j * kStep;
    kept[j] = at < op.width ? h_row.four(at) : make_float4(0, 0, 0, 0);
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kKept; ++j) sum = add_squares(kept[j], sum);
  for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) sum = add_squares(h_row.four(at), sum);
  QIAO_SHARED(float, partial, 32);
  sum = block_sum<kWarps>(sum, partial);
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(op.width) + op.epsilon);
  float* y = op.y.row(row);
  float* out = op.residual_out.data == nullptr ? nullptr : op.residual_out.row(row);
  const auto store = [&](int64_t at, float4 h) {
    const float4 g = gain(op.gamma, op.gamma_aligned, op.gamma_offset, at, op.width);
    if (out != nullptr) store_four(out, at, op.width, op.residual_out.aligned, h);
    store_four(y, at, op.width, op.y.aligned,
               make_float4(h.x * factor * g.x, h.y * factor * g.y, h.z * factor * g.z, h.w * factor * g.w));
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t at = first + j * kStep;
    if (at < op.width) store(at, kept[j]);
  }
  for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) store(at, h_row.four(at));
}

struct NormBackwardArguments {
  Rows dy, more, h, dh;  // more: dresidual_out, or absent
  const float* gamma;
  bool gamma_aligned;
  float gamma_offset, epsilon;
  int64_t rows, width;
  int64_t chunk;        // rows that one group of warps takes, one after the other
  float* dgamma_parts;  // [chunks, width rounded up to 4], or null
};

template <int kWarps, int kKept>
__global__ void __launch_bounds__(kWarps == 1 ? 128 : 32 * kWarps) norm_backward(NormBackwardArguments op) {
  begin_kernel();
  const int64_t group = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  constexpr int64_t kStep = 4 * 32 * kWarps;
  const int64_t first = 4 * int64_t{threadIdx.x};
  const int64_t begin = group * op.chunk;
  const int64_t end = begin + op.chunk < op.rows ? begin + op.chunk : op.rows;
  float* parts = op.dgamma_parts == nullptr ? nullptr : op.dgamma_parts + group * ceil_div(op.width, 4) * 4;
  float4 of_gamma[kKept];
#pragma unroll
  for (int j = 0; j < kKept; ++j) of_gamma[j] = make_float4(0, 0, 0, 0);
  QIAO_SHARED(float, squares_of, 32);
  QIAO_SHARED(float, dots_of, 32);
  const float count = static_cast<float>(op.width);
  for (int64_t row = begin; row < end; ++row) {
    const float* h = op.h.row(row);
    const float* dy = op.dy.row(row);
    float4 kept_h[kKept], kept_dy[kKept];
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t at = first + j * kStep;
      const bool inside = at < op.width;
      kept_h[j] = inside ? load_four(h, at, op.width, op.h.aligned) : make_float4(0, 0, 0, 0);
      kept_dy[j] = inside ? load_four(dy, at, op.width, op.dy.aligned) : make_float4(0, 0, 0, 0);
    }
    float squares = 0, dot = 0;
    const auto add_up = [&](int64_t at, float4 hv, float4 dv) {
      const float4 g = gain(op.gamma, op.gamma_aligned, op.gamma_offset, at, op.width);
      squares = add_squares(hv, squares);
      dot =
          fmaf(g.w * dv.w, hv.w, fmaf(g.z * dv.z, hv.z, fmaf(g.y * dv.y, hv.y, fmaf(g.x * dv.x, hv.x, dot))));
    };
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t at = first + j * kStep;
      if (at < op.width) add_up(at, kept_h[j], kept_dy[j]);
    }
    for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) {
      add_up(at, load_four(h, at, op.width, op.h.aligned), load_four(dy, at, op.width, op.dy.aligned));
    }
    squares = block_sum<kWarps>(squares, squares_of);
    dot = block_sum<kWarps>(dot, dots_of);
    const float r = 1.0f / sqrtf(squares / count + op.epsilon);
    const float through = r * r / count * dot;
    float* dh = op.dh.row(row);
    const float* more = op.more.data == nullptr ? nullptr : op.more.row(row);
    // What dgamma gets of these elements.
    const auto give = [&](int64_t at, float4 hv, float4 dv) {
      const float4 g = gain(op.gamma, op.gamma_aligned, op.gamma_offset, at, op.width);
      float4 d = make_float4(r * (g.x * dv.x - hv.x * through), r * (g.y * dv.y - hv.y * through),
                             r * (g.z * dv.z - hv.z * through), r * (g.w * dv.w - hv.w * through));
      if (more != nullptr) d = add(load_four(more, at, op.width, op.more.aligned), d);
      store_four(dh, at, op.width, op.dh.aligned, d);
      return make_float4(dv.x * (hv.x * r), dv.y * (hv.y * r), dv.z * (hv.z * r), dv.w * (hv.w * r));
    };
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t at = first + j * kStep;
      if (at < op.width) of_gamma[j] = add(of_gamma[j], give(at, kept_h[j], kept_dy[j]));
    }
    for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) {
      const float4 part =
          give(at, load_four(h, at, op.width, op.h.aligned), load_four(dy, at, op.width, op.dy.aligned));
      if (parts == nullptr) continue;
      auto* sum = reinterpret_cast<float4*>(parts + at);
      *sum = row == begin ? part : add(*sum, part);
    }
    if (kWarps > 1) __syncthreads();  // the sums of this row are read
  }
  if (parts == nullptr || begin >= end) return;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t at = first + j * kStep;
    if (at < op.width) *reinterpret_cast<float4*>(parts + at) = of_gamma[j];
  }
}

__global__ void __launch_bounds__(256)
    norm_add_parts(const float* parts, int64_t chunks, int64_t width, float* sums) {
  begin_kernel();
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= width) return;
  float sum = sums[c];
  for (int64_t i = 0; i < chunks; ++i) sum += parts[i * (ceil_div(width, 4) * 4) + c];
  sums[c] = sum;
}

}  // namespace

void CudaBackend::do_add_rms_norm(const AddRmsNorm& op) {
  NormArguments a{rows_of(op.x), rows_of(op.residual), rows_of(op.y), rows_of(op.residual_out)};
  a.gamma = op.gamma.present() ? op.gamma.as<float>() : nullptr;
  a.gamma_aligned = aligned_16(a.gamma);
  a.gamma_offset = op.gamma_offset;
  a.epsilon = op.epsilon;
  a.width = op.x.shape[static_cast<size_t>(op.x.rank - 1)];
  a.rows = op.x.elements() / a.width;
  for_width(a.width, [&](auto warps, auto kept) {
    const dim3 block = row_block(warps);
    launch("add_rms_norm", stream_, norm_forward<warps(), kept()>, blocks_for(a.rows, block.y), block, 0, a);
  });
}

void CudaBackend::do_add_rms_norm_backward(const AddRmsNormBackward& op) {
  constexpr int64_t kMostChunks = 512;  // of dgamma: enough to fill a device, few enough to add up
  NormBackwardArguments a{rows_of(op.dy), rows_of(op.dresidual_out), rows_of(op.h), rows_of(op.dh)};
  a.gamma = op.gamma.present() ? op.gamma.as<float>() : nullptr;
  a.gamma_aligned = aligned_16(a.gamma);
  a.gamma_offset = op.gamma_offset;
  a.epsilon = op.epsilon;
  a.width = op.dy.shape[static_cast<size_t>(op.dy.rank - 1)];
  a.rows = op.dy.elements() / a.width;
  if (a.rows == 0) return;
  a.chunk = op.dgamma.present() ? ceil_div(a.rows, kMostChunks) : 1;
  const int64_t chunks = ceil_div(a.rows, a.chunk);
  const auto run = [&] {
    for_width(a.width, [&](auto warps, auto kept) {
      const dim3 block = row_block(warps);
      launch("add_rms_norm_backward", stream_, norm_backward<warps(), kept()>, blocks_for(chunks, block.y),
             block, 0, a);
    });
  };
  if (!op.dgamma.present()) return run();
  const Scratch parts(memory_, static_cast<size_t>(chunks * ceil_div(a.width, 4) * 4) * sizeof(float));
  a.dgamma_parts = parts.as<float>();
  run();
  launch("add_rms_norm_backward", stream_, norm_add_parts, blocks_for(a.width, 256), 256, 0, a.dgamma_parts,
         chunks, a.width, op.dgamma.as<float>());
}

}  // namespace qiao::cuda
