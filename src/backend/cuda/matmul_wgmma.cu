// BF16 weights with many tokens on Hopper: matmul_wgmma.h. And the tokens as its blocks take them, once for
// all rows of the weight (PieceOperand). A thread makes a piece of eight elements; one pass over memory.
// Measured: docs/h200.md.
#include "backend/cuda/matmul_wgmma.h"

#include "backend/cuda/prepare.h"

namespace qiao::cuda {
namespace {

constexpr int kPiecesThreads = 256;

__global__ void __launch_bounds__(kPiecesThreads)
    prepare_pieces(const float* x, int64_t stride, int64_t tokens, int64_t width, int64_t stages,
                   PieceOperand operand) {
  begin_kernel();
  const int64_t count = stages * operand.rows * 8;
  const bool aligned = aligned_16(x) && stride % 4 == 0;
  for (int64_t i = int64_t{blockIdx.x} * kPiecesThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kPiecesThreads) {
    const int64_t row = i / 8, token = row % operand.rows, k = row / operand.rows * 64 + i % 8 * 8;
    float4 low = make_float4(0, 0, 0, 0), high = low;
    if (token < tokens) {
      low = load_four(x + token * stride, k, width, aligned);
      high = load_four(x + token * stride, k + 4, width, aligned);
    }
    *reinterpret_cast<uint4*>(operand.piece(token, k)) = make_uint4(
        two_bf16(low.x, low.y), two_bf16(low.z, low.w), two_bf16(high.x, high.y), two_bf16(high.z, high.w));
  }
}

}  // namespace

void launch_prepare_wgmma(const Stream& stream, const MatmulArguments& op, uint8_t* prepared) {
  const PieceOperand operand{prepared, ceil_div(op.tokens, 8) * 8};
  if (op.norm.present) return launch_prepare_normed(stream, op, operand.rows, operand);
  const int64_t stages = op.prepared_columns / 64;
  launch("linear", stream, prepare_pieces, blocks_for(operand.rows * 8 * stages, kPiecesThreads),
         kPiecesThreads, 0, op.x, op.x_stride, op.tokens, op.weight.columns, stages, operand);
}

int64_t wgmma_partial_bytes(int64_t rows, int64_t segments, int64_t tokens, int64_t experts, bool gated) {
  if (segments == 1 || tokens <= kFewTokens) return 0;
  int64_t floats = 0;
  const int64_t most = std::max<int64_t>(2 * tokens, gated ? kLeastGatedTokens + 1 : 0);
  for (int size = 16; size <= kMostLineTokens && size < most; size *= 2) {
    const int64_t row_blocks = wgmma_row_blocks(rows, size);
    int64_t tiles = row_blocks * wgmma_token_tiles(tokens, experts, size);
    // The largest ones are for one tile of tokens or for few tiles.
    if (size == kMostLineTokens) tiles = std::max(row_blocks, std::min(tiles, kFewWgmmaTiles));
    floats = std::max(floats, std::min(tiles, kMostLineBlocks) * 64 * wgmma_groups(size) * size);
  }
  return segments * floats * static_cast<int64_t>(sizeof(float));
}

void launch_matmul_wgmma(const Stream& stream, MatmulArguments op) {
  const int size = plan_wgmma(op, stream.multiprocessors(), op.segments > 1 ? 192 : 256);
  with_wgmma_tile<256>(size, [&](auto tokens) { launch_wgmma<WgmmaShape<tokens()>>(stream, op); });
}

}  // namespace qiao::cuda
