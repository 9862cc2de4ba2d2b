// linear_backward and grouped_linear_backward: dx = dy W, dw += dy^T x, dbias. Both products are in F32 by
// the tiles of tile_f32.h, 128 columns of K by 64 rows (of x, or of the weight) a block, over the whole of n
// or t in one ascending chain that begins with what was there; weights of every dtype are unpacked as they
// come. dbias: a warp reads 32 columns, eight warps an eighth of the rows each, added up in order. Limit: F32
// arithmetic. Tensor cores would need operands of three TF32 parts to stay inside the contract's bound. Not
// yet run on a device.
#include "backend/ops/linear.h"

#include <algorithm>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/gradient.h"
#include "backend/cuda/tile_f32.h"

namespace qiao::cuda {
namespace {

constexpr int kGradientRows = 64;
using GradientTile = TileSums<kGradientRows>;

template <DType kKind>
__global__ void __launch_bounds__(kTileThreads, 2) input_gradient(GradientArguments op) {
  begin_kernel();
  const TokenTile tile =
      token_tile(op.counts, op.experts, op.tokens, blockIdx.x % op.token_tiles, kGradientRows);
  if (tile.count == 0) return;
  WeightRows weight = op.weight;
  weight.tiles += tile.expert * op.expert_bytes;
  const int64_t column = blockIdx.x / op.token_tiles * kTileWidth;
  WeightAlongN<kKind> a{weight, column, {}};
  AlongRows<kGradientRows, GradientTile::kColumnStride> b{
      op.dy + tile.first * op.dy_stride, op.dy_stride, op.column, op.end_row, tile.count, {}};
  const auto place = [&](int n) -> float* {
    const int64_t k = column + GradientTile::i_of(n);
    const int j = GradientTile::j_of(n);
    return k < weight.columns && j < tile.count ? op.dx + (tile.first + j) * op.dx_stride + k : nullptr;
  };
  float sums[GradientTile::kCount];
#pragma unroll
  for (int n = 0; n < GradientTile::kCount; ++n) {
    const float* at = op.add ? place(n) : nullptr;
    sums[n] = at == nullptr ? 0.0f : *at;
  }
  multiply_stages<kGradientRows>(op.first_row, op.end_row, a, b, place(0) != nullptr, shared_memory<float>(),
                                 sums);
#pragma unroll
  for (int n = 0; n < GradientTile::kCount; ++n) {
    if (float* at = place(n); at != nullptr) *at = sums[n];
  }
}

// The rows of one expert; by whole warps, the same in each lane.
struct RowRange {
  int64_t begin, end;
};
__device__ RowRange rows_of_expert(const int32_t* counts, int64_t tokens, int expert) {
  if (counts == nullptr) return {0, tokens};
  int before = 0;
  for (int e = static_cast<int>(threadIdx.x % 32); e < expert; e += 32) before += counts[e];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) before += __shfl_xor_sync(kAllLanes, before, lanes);
  return {before, before + counts[expert]};
}

__global__ void __launch_bounds__(kTileThreads, 2) weight_gradient(WeightGradientArguments op) {
  begin_kernel();
  const auto expert = static_cast<int>(blockIdx.y);
  const RowRange range = rows_of_expert(op.counts, op.tokens, expert);
  if (range.begin >= range.end) return;
  const int64_t across = ceil_div(op.columns, kTileWidth);
  const int64_t column = blockIdx.x % across * kTileWidth, row = blockIdx.x / across * kGradientRows;
  AcrossRows<kTileWidth, kWidthStride> a{op.x, op.x_stride, range.end, column, op.columns, {}};
  AcrossRows<kGradientRows, GradientTile::kColumnStride> b{op.dy, op.dy_stride, range.end, row, op.rows, {}};
  float* dw = op.dw + expert * op.rows * op.columns;
  const auto place = [&](int n) -> float* {
    const int64_t k = column + GradientTile::i_of(n), at = row + GradientTile::j_of(n);
    return k < op.columns && at < op.rows ? dw + at * op.columns + k : nullptr;
  };
  float sums[GradientTile::kCount];
#pragma unroll
  for (int n = 0; n < GradientTile::kCount; ++n) {
    const float* at = place(n);
    sums[n] = at == nullptr ? 0.0f : *at;
  }
  multiply_stages<kGradientRows>(range.begin, range.end, a, b, place(0) != nullptr, shared_memory<float>(),
                                 sums);
#pragma unroll
  for (int n = 0; n < GradientTile::kCount; ++n) {
    if (float* at = place(n); at != nullptr) *at = sums[n];
  }
}

constexpr int kBiasWarps = 8;

__global__ void __launch_bounds__(32 * kBiasWarps)
    bias_gradient(const float* dy, int64_t stride, int64_t tokens, int64_t rows, float* dbias) {
  begin_kernel();
  QIAO_SHARED(float, parts, 32 * kBiasWarps);
  const int64_t n = int64_t{blockIdx.x} * 32 + threadIdx.x % 32;
  const int64_t each = ceil_div(tokens, kBiasWarps), begin = threadIdx.x / 32 * each;
  const int64_t end = begin + each < tokens ? begin + each : tokens;
  float sum = 0;
  for (int64_t t = begin; n < rows && t < end; ++t) sum += dy[t * stride + n];
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || n >= rows) return;
  sum = dbias[n];
  for (int w = 0; w < kBiasWarps; ++w) sum += parts[32 * w + threadIdx.x];
  dbias[n] = sum;
}

// What both ops share.
template <class Op>
void input_gradients(const Stream& stream, const Op& op, const int32_t* counts) {
  const auto& weight = static_cast<const CudaWeight&>(*op.weight);
  GradientArguments a;
  a.expert_bytes = static_cast<int64_t>(weight.expert_bytes());
  a.dy = op.dy.template as<float>(), a.dy_stride = op.dy.stride[0], a.tokens = op.dy.shape[0];
  a.counts = counts, a.experts = static_cast<int>(weight.experts());
  a.dx = op.dx.template as<float>(), a.dx_stride = op.dx.stride[0];
  for (size_t i = 0; i < weight.panels().size(); ++i) {
    a.weight = weight.rows_of(0, i);
    a.end_row = weight.panels()[i].rows;
    a.column = weight.panels()[i].first_row;
    a.add = op.add_dx || i > 0;
    launch_input_gradient(stream, a);
  }
}

template <class Op>
WeightGradientArguments weight_gradients(const Op& op, const int32_t* counts) {
  WeightGradientArguments a;
  a.dy = op.dy.template as<float>(), a.dy_stride = op.dy.stride[0];
  a.x = op.x.template as<float>(), a.x_stride = op.x.stride[0];
  a.tokens = op.dy.shape[0], a.rows = op.dy.shape[1], a.columns = op.x.shape[1];
  a.counts = counts, a.experts = static_cast<int>(op.weight->experts());
  a.dw = op.dw.template as<float>();
  return a;
}

}  // namespace

void launch_input_gradient(const Stream& stream, GradientArguments a) {
  if (a.tokens == 0) return;
  a.token_tiles = a.counts == nullptr ? ceil_div(a.tokens, kGradientRows)
                                      : std::min<int64_t>(a.experts, a.tokens) + a.tokens / kGradientRows;
  const auto blocks = static_cast<unsigned>(ceil_div(a.weight.columns, kTileWidth) * a.token_tiles);
  for_piece_kind(a.weight.dtype, [&](auto kind) {
    launch("linear_backward", stream, input_gradient<kind()>, blocks, kTileThreads,
           GradientTile::kSharedBytes, a);
  });
}

void launch_weight_gradient(const Stream& stream, const WeightGradientArguments& a) {
  if (a.tokens == 0) return;
  const auto blocks =
      static_cast<unsigned>(ceil_div(a.columns, kTileWidth) * ceil_div(a.rows, kGradientRows));
  launch("linear_backward", stream, weight_gradient, dim3(blocks, static_cast<unsigned>(a.experts)),
         kTileThreads, GradientTile::kSharedBytes, a);
}

void CudaBackend::do_linear_backward(const LinearBackward& op) {
  if (op.dx.present()) input_gradients(stream_, op, nullptr);
  if (op.dw.present()) launch_weight_gradient(stream_, weight_gradients(op, nullptr));
  if (op.dbias.present() && op.dy.shape[0] > 0) {
    launch("linear_backward", stream_, bias_gradient, blocks_for(op.dy.shape[1], 32), 32 * kBiasWarps, 0,
           op.dy.as<float>(), op.dy.stride[0], op.dy.shape[0], op.dy.shape[1], op.dbias.as<float>());
  }
}

void CudaBackend::do_grouped_linear_backward(const GroupedLinearBackward& op) {
  const auto* counts = op.counts.as<int32_t>();
  if (op.dx.present()) input_gradients(stream_, op, counts);
  if (op.dw.present()) launch_weight_gradient(stream_, weight_gradients(op, counts));
}

}  // namespace qiao::cuda
