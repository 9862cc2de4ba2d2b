// add_rms_norm and its way back. A row belongs to one warp (up to 512 elements), 4 or 16 warps, as its width
// alone says. Each thread has all of its elements on their way at once (so one row alone waits for memory
// once) and keeps them in registers between the sum and the results, so memory is read once and written once;
// what does not fit (rows of more than 8192) is read again. Limited by the memory's bandwidth. Sums: a thread
// adds its elements up in ascending order, then the threads fold pairwise.
#include "backend/ops/norm.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/norm_rows.h"

namespace qiao::cuda {
namespace {

struct NormArguments {
  Rows x, residual, y, residual_out;  // data null: absent
  const float* gamma;                 // null: ones
  bool gamma_aligned;
  float gamma_offset, epsilon;
  int64_t rows, width;
};

template <int kWarps, int kKept, bool kVectors>
__global__ void __launch_bounds__(kWarps == 1 ? 128 : 32 * kWarps, kWarps == 16 ? 2 : 1)
    norm_forward(NormArguments op) {
  begin_kernel();
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= op.rows) return;  // of a warp for itself: no barrier follows
  constexpr int64_t kStep = 4 * 32 * kWarps;
  const int64_t first = 4 * int64_t{threadIdx.x};
  const SummedRow h_row(op.x, op.residual, row, op.width);
  float4 kept[kKept], residual[kKept], gains[kKept];
#pragma unroll
  for (int j = 0; j < kKept; ++j)
    kept[j] = four_at<kVectors>(h_row.x, first + j * kStep, op.width, op.x.aligned);
  if (h_row.residual != nullptr) {
#pragma unroll
    for (int j = 0; j < kKept; ++j)
      residual[j] = four_at<kVectors>(h_row.residual, first + j * kStep, op.width, op.residual.aligned);
  }
  if (op.gamma != nullptr) {
#pragma unroll
    for (int j = 0; j < kKept; ++j)
      gains[j] = four_at<kVectors>(op.gamma, first + j * kStep, op.width, op.gamma_aligned);
  }
  if (h_row.residual != nullptr) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) kept[j] = add(kept[j], residual[j]);
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kKept; ++j) sum = add_squares(kept[j], sum);
  for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) sum = add_squares(h_row.four(at), sum);
  QIAO_SHARED(float, partial, 32);
  sum = block_sum<kWarps>(sum, partial);
  const float factor = norm_factor(sum, op.width, op.epsilon);
  float* y = op.y.row(row);
  float* out = op.residual_out.data == nullptr ? nullptr : op.residual_out.row(row);
  const auto store = [&](int64_t at, float4 h, float4 g) {
    if (out != nullptr) store_four(out, at, op.width, kVectors || op.residual_out.aligned, h);
    store_four(y, at, op.width, kVectors || op.y.aligned, normed(h, factor, g));
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t at = first + j * kStep;
    if (at < op.width) store(at, kept[j], gain(op.gamma == nullptr, gains[j], op.gamma_offset));
  }
  for (int64_t at = first + kKept * kStep; at < op.width; at += kStep)
    store(at, h_row.four(at), gain(op.gamma, op.gamma_aligned, op.gamma_offset, at, op.width));
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

template <int kWarps, int kKept, bool kVectors>
__global__ void __launch_bounds__(kWarps == 1 ? 128 : 32 * kWarps) norm_backward(NormBackwardArguments op) {
  begin_kernel();
  const int64_t group = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  constexpr int64_t kStep = 4 * 32 * kWarps;
  const int64_t first = 4 * int64_t{threadIdx.x};
  const int64_t begin = group * op.chunk;
  const int64_t end = begin + op.chunk < op.rows ? begin + op.chunk : op.rows;
  float* parts = op.dgamma_parts == nullptr ? nullptr : op.dgamma_parts + group * ceil_div(op.width, 4) * 4;
  float4 of_gamma[kKept], kept_gain[kKept];
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t at = first + j * kStep;
    of_gamma[j] = make_float4(0, 0, 0, 0);
    kept_gain[j] = at < op.width ? gain(op.gamma, op.gamma_aligned, op.gamma_offset, at, op.width)
                                 : make_float4(0, 0, 0, 0);
  }
  QIAO_SHARED(float, squares_of, 32);
  QIAO_SHARED(float, dots_of, 32);
  const float count = static_cast<float>(op.width);
  for (int64_t row = begin; row < end; ++row) {
    const float* h = op.h.row(row);
    const float* dy = op.dy.row(row);
    const float* more = op.more.data == nullptr ? nullptr : op.more.row(row);
    float4 kept_h[kKept], kept_dy[kKept], kept_more[kKept];
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t at = first + j * kStep;
      kept_h[j] = four_at<kVectors>(h, at, op.width, op.h.aligned);
      kept_dy[j] = four_at<kVectors>(dy, at, op.width, op.dy.aligned);
      if (more != nullptr) kept_more[j] = four_at<kVectors>(more, at, op.width, op.more.aligned);
    }
    float squares = 0, dot = 0;
    const auto add_up = [&](float4 hv, float4 dv, float4 g) {
      squares = add_squares(hv, squares);
      dot =
          fmaf(g.w * dv.w, hv.w, fmaf(g.z * dv.z, hv.z, fmaf(g.y * dv.y, hv.y, fmaf(g.x * dv.x, hv.x, dot))));
    };
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if (first + j * kStep < op.width) add_up(kept_h[j], kept_dy[j], kept_gain[j]);
    }
    for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) {
      add_up(load_four(h, at, op.width, op.h.aligned), load_four(dy, at, op.width, op.dy.aligned),
             gain(op.gamma, op.gamma_aligned, op.gamma_offset, at, op.width));
    }
    squares = block_sum<kWarps>(squares, squares_of);
    dot = block_sum<kWarps>(dot, dots_of);
    const float r = norm_factor(squares, op.width, op.epsilon);
    const float through = r * r / count * dot;
    float* dh = op.dh.row(row);
    // What dgamma gets of these elements.
    const auto give = [&](int64_t at, float4 hv, float4 dv, float4 mv, float4 g) {
      float4 d = make_float4(r * (g.x * dv.x - hv.x * through), r * (g.y * dv.y - hv.y * through),
                             r * (g.z * dv.z - hv.z * through), r * (g.w * dv.w - hv.w * through));
      if (more != nullptr) d = add(mv, d);
      store_four(dh, at, op.width, kVectors || op.dh.aligned, d);
      return make_float4(dv.x * (hv.x * r), dv.y * (hv.y * r), dv.z * (hv.z * r), dv.w * (hv.w * r));
    };
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t at = first + j * kStep;
      if (at >= op.width) continue;
      of_gamma[j] = add(of_gamma[j], give(at, kept_h[j], kept_dy[j], kept_more[j], kept_gain[j]));
    }
    for (int64_t at = first + kKept * kStep; at < op.width; at += kStep) {
      const float4 mv =
          more == nullptr ? make_float4(0, 0, 0, 0) : load_four(more, at, op.width, op.more.aligned);
      const float4 part =
          give(at, load_four(h, at, op.width, op.h.aligned), load_four(dy, at, op.width, op.dy.aligned), mv,
               gain(op.gamma, op.gamma_aligned, op.gamma_offset, at, op.width));
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

// sums += what the chunks have: 32 columns a block, whose kPartRuns rows of threads take a run of chunks
// each, ascending, and are added up in ascending order.
constexpr int kPartRuns = 16;
__global__ void __launch_bounds__(32 * kPartRuns)
    norm_add_parts(const float* parts, int64_t chunks, int64_t width, float* sums) {
  begin_kernel();
  QIAO_SHARED(float, of_run, kPartRuns * 32);
  const int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x, stride = ceil_div(width, 4) * 4;
  const int64_t run = ceil_div(chunks, kPartRuns), begin = threadIdx.y * run;
  const int64_t end = begin + run < chunks ? begin + run : chunks;
  float sum = 0;
  if (c < width) {
#pragma unroll 8
    for (int64_t i = begin; i < end; ++i) sum += parts[i * stride + c];
  }
  of_run[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= width) return;
  sum = sums[c];
#pragma unroll
  for (int i = 0; i < kPartRuns; ++i) sum += of_run[i * 32 + static_cast<int>(threadIdx.x)];
  sums[c] = sum;
}

// Whether every row of those that are there, and gamma, is whole vectors of 16 bytes.
template <class... R>
bool are_vectors(int64_t width, const float* gamma, const R&... rows) {
  return width % 4 == 0 && aligned_16(gamma) && ((rows.data == nullptr || rows.aligned) && ...);
}
// Calls run(warps, kept, vectors).
template <class Run>
void for_shape(int64_t width, bool vectors, Run run) {
  for_width(width, [&](auto warps, auto kept) {
    vectors ? run(warps, kept, std::true_type()) : run(warps, kept, std::false_type());
  });
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
  const bool vectors = are_vectors(a.width, a.gamma, a.x, a.residual, a.y, a.residual_out);
  for_shape(a.width, vectors, [&](auto warps, auto kept, auto is_vectors) {
    const dim3 block = row_block(warps);
    launch("add_rms_norm", stream_, norm_forward<warps(), kept(), is_vectors()>, blocks_for(a.rows, block.y),
           block, 0, a);
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
    const bool vectors = are_vectors(a.width, a.gamma, a.dy, a.more, a.h, a.dh);
    for_shape(a.width, vectors, [&](auto warps, auto kept, auto is_vectors) {
      const dim3 block = row_block(warps);
      launch("add_rms_norm_backward", stream_, norm_backward<warps(), kept(), is_vectors()>,
             blocks_for(chunks, block.y), block, 0, a);
    });
  };
  if (!op.dgamma.present()) return run();
  const Scratch parts(memory_, static_cast<size_t>(chunks * ceil_div(a.width, 4) * 4) * sizeof(float));
  a.dgamma_parts = parts.as<float>();
  run();
  launch("add_rms_norm_backward", stream_, norm_add_parts, blocks_for(a.width, 32), dim3(32, kPartRuns), 0,
         a.dgamma_parts, chunks, a.width, op.dgamma.as<float>());
}

}  // namespace qiao::cuda
