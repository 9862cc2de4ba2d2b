// linear_backward and grouped_linear_backward: dx = dy W, dw += dy^T x, dbias. Both products are in BF16 by
// gradient_bf16.cu, in FP8 by gradient_f8.cu, or in F32 by the tiles of tile_f32.h, 128 columns of K by 64
// rows (of x, or of the weight) a block, over the whole of n or t in one ascending chain that begins with
// what was there; weights of every dtype are unpacked as they come. dbias: a warp reads 32 columns, eight
// warps an eighth of the rows each, added up in order. Limit: F32 arithmetic. Tensor cores would need
// operands of three TF32 parts to stay inside the contract's bound of kF32. Measured: docs/h200.md.
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
void input_gradients(const CudaBackend& chip, const Op& op, const int32_t* counts) {
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
    if (op.compute == Compute::kBF16) {
      run_input_gradient_bf16(chip, a, op.workspace.template as<std::byte>());
    } else if (op.compute == Compute::kF8) {  // all rows are one panel's
      run_input_gradient_f8(chip, weight, a, op.workspace.template as<std::byte>());
    } else {
      launch_input_gradient(chip.stream(), a);
    }
  }
}

template <class Op>
void weight_gradients(const CudaBackend& chip, const Op& op, const int32_t* counts) {
  WeightGradientArguments a;
  a.dy = op.dy.template as<float>(), a.dy_stride = op.dy.stride[0];
  a.x = op.x.template as<float>(), a.x_stride = op.x.stride[0];
  a.tokens = op.dy.shape[0], a.rows = op.dy.shape[1], a.columns = op.x.shape[1];
  a.counts = counts, a.experts = static_cast<int>(op.weight->experts());
  a.dw = op.dw.template as<float>();
  if (op.compute == Compute::kBF16) {
    run_weight_gradient_bf16(chip, a, op.workspace.template as<std::byte>());
  } else if (op.compute == Compute::kF8) {
    run_weight_gradient_f8(chip, a, op.workspace.template as<std::byte>());
  } else {
    launch_weight_gradient(chip.stream(), a);
  }
}

template <class Op>
size_t gradient_workspace_bytes(const Op& op) {
  if (op.compute == Compute::kF32) return 0;
  const Weight& weight = *op.weight;
  if (op.compute == Compute::kF8) return f8_gradient_bytes(weight, op.dy.shape[0]);
  return bf16_gradient_bytes(weight.experts(), weight.rows(), weight.columns(), op.dy.shape[0]);
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

size_t CudaBackend::workspace_bytes(const LinearBackward& op) const { return gradient_workspace_bytes(op); }
size_t CudaBackend::workspace_bytes(const GroupedLinearBackward& op) const {
  return gradient_workspace_bytes(op);
}

void CudaBackend::do_linear_backward(const LinearBackward& op) {
  if (op.dx.present()) input_gradients(*this, op, nullptr);
  if (op.dw.present()) weight_gradients(*this, op, nullptr);
  if (op.dbias.present() && op.dy.shape[0] > 0) {
    launch("linear_backward", stream_, bias_gradient, blocks_for(op.dy.shape[1], 32), 32 * kBiasWarps, 0,
           op.dy.as<float>(), op.dy.stride[0], op.dy.shape[0], op.dy.shape[1], op.dbias.as<float>());
  }
}

void CudaBackend::do_grouped_linear_backward(const GroupedLinearBackward& op) {
  const auto* counts = op.counts.as<int32_t>();
  if (op.dx.present()) input_gradients(*this, op, counts);
  if (op.dw.present()) weight_gradients(*this, op, counts);
}

}  // namespace qiao::cuda
