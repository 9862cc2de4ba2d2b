// Products in F32 (matmul.h): weights of every dtype, unpacked as they come, by the tiles of tile_f32.h. A
// block has 128 rows of the weight and 64 tokens, or 8 where there are few: then 32 threads a token, and the
// weight's stream is the limit. A thread keeps the sums of the segment and those of the segments before. Two
// blocks of 256 threads a multiprocessor: 128 registers, 51 KB of shared memory. Measured: docs/h200.md.
#include "backend/cuda/matmul.h"
#include "backend/cuda/tile_f32.h"

namespace qiao::cuda {
namespace {

template <int kTokens, DType kKind>
__global__ void __launch_bounds__(kTileThreads, kTokens == kFewTokens || kKind != DType::kQ4_0 ? 2 : 1)
    matmul_f32(MatmulArguments op) {
  begin_kernel();
  using T = TileSums<kTokens>;
  const TokenTile tile = token_tile(op.counts, op.experts, op.tokens, blockIdx.x % op.token_tiles, kTokens);
  if (tile.count == 0) return;
  const int64_t row_tile = op.first_row / kTileRows + blockIdx.x / op.token_tiles * (kTileWidth / kTileRows);
  WeightRows weight = op.weight;
  weight.tiles += tile.expert * op.expert_bytes;
  WeightAlongK<kKind> a{weight, row_tile, {}};
  AlongRows<kTokens, T::kColumnStride> b{
      op.x + tile.first * op.x_stride, op.x_stride, 0, weight.columns, tile.count, {}};
  const bool active = T::j_of(0) < tile.count && row_tile * kTileRows + T::i_of(0) < op.end_row;
  float total[T::kCount] = {};
  const int64_t first = op.split ? blockIdx.y : 0, end = op.split ? first + 1 : op.segments;
  for (int64_t s = first; s < end; ++s) {
    const int64_t begin = s * op.segment, stop = begin + op.segment;
    float sums[T::kCount] = {};
    multiply_stages<kTokens>(begin, stop < weight.columns ? stop : weight.columns, a, b, active,
                             shared_memory<float>(), sums);
#pragma unroll
    for (int n = 0; n < T::kCount; ++n) total[n] = s == first ? sums[n] : total[n] + sums[n];
  }
  if (op.split && !add_segments<kTileThreads>(op, total)) return;
  if (!active) return;
#pragma unroll
  for (int n = 0; n < T::kCount; ++n) {
    const int64_t row = row_tile * kTileRows + T::i_of(n);
    if (row >= op.first_row && row < op.end_row && T::j_of(n) < tile.count) {
      finish_sum(op, tile.first + T::j_of(n), row, total[n]);
    }
  }
}

}  // namespace

void launch_matmul_f32(const Stream& stream, const MatmulArguments& op, bool few) {
  for_piece_kind(op.weight.dtype, [&](auto kind) {
    if (few) {
      launch("linear", stream, matmul_f32<kFewTokens, kind()>, matmul_grid(op), kTileThreads,
             TileSums<kFewTokens>::kSharedBytes, op);
    } else {
      launch("linear", stream, matmul_f32<kManyTokens, kind()>, matmul_grid(op), kTileThreads,
             TileSums<kManyTokens>::kSharedBytes, op);
    }
  });
}

}  // namespace qiao::cuda
