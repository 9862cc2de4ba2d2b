// FP8 with many tokens on Hopper: matmul_wgmma_f8.h. And the tokens as its blocks take them, once for all
// rows of the weight: numbers of E4M3 as F16, [block of 128 columns][half of it][token, rounded up to 8][128
// bytes], each row's 16-byte pieces where wgmma looks for them (instructions.h), a piece being half of a step
// (matmul_f8.h: the first two of each four columns of 32, or the other two); then the scales, [block][token].
// A warp has a block of a token; one pass over memory. Not yet run on a device.
#include "backend/cuda/matmul_wgmma_f8.h"

namespace qiao::cuda {
namespace {

constexpr int kPrepareF8Threads = 256;

__global__ void __launch_bounds__(kPrepareF8Threads)
    prepare_f8_pieces(const float* x, int64_t stride, int64_t tokens, int64_t blocks, uint8_t* out,
                      float* scales) {
  begin_kernel();
  const int64_t padded = ceil_div(tokens, 8) * 8, count = blocks * padded;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool aligned = aligned_16(x) && stride % 4 == 0;
  for (int64_t i = int64_t{blockIdx.x} * (kPrepareF8Threads / 32) + threadIdx.x / 32; i < count;
       i += int64_t{gridDim.x} * (kPrepareF8Threads / 32)) {
    const int64_t block = i / padded, token = i % padded;
    float4 four = make_float4(0, 0, 0, 0);
    if (token < tokens)
      four = load_four(x + token * stride, block * kF8Block + 4 * lane, blocks * kF8Block, aligned);
    const float values[4] = {four.x, four.y, four.z, four.w};
    float scale;
    uint32_t first, second;
    unpack_e4m3(quantize_four_f8(values, scale), first, second);
    // Columns 4 lane to 4 lane + 3: word lane % 4 of a piece of the group's first step, and of its second.
    const int64_t row = (block * 2 + lane / 16) * padded + token;
    const int piece = lane % 16 / 8 * 4 + lane % 8 / 4, twist = static_cast<int>(token % 8);
    uint8_t* to = out + row * 128 + lane % 4 * 4;
    *reinterpret_cast<uint32_t*>(to + (piece ^ twist) * 16) = first;
    *reinterpret_cast<uint32_t*>(to + ((piece + 2) ^ twist) * 16) = second;
    if (lane == 0) scales[block * padded + token] = scale;
  }
}

}  // namespace

void launch_prepare_wgmma_f8(const Stream& stream, const MatmulArguments& op, uint8_t* prepared,
                             ActivationMeta* meta) {
  const int64_t blocks = op.weight.columns / kF8Block;
  launch("linear", stream, prepare_f8_pieces,
         blocks_for(ceil_div(op.tokens, 8) * 8 * blocks * 32, kPrepareF8Threads), kPrepareF8Threads, 0, op.x,
         op.x_stride, op.tokens, blocks, prepared, reinterpret_cast<float*>(meta));
}

void launch_matmul_wgmma_f8(const Stream& stream, MatmulArguments op, bool whole) {
  using S = WgmmaF8Shape;
  op.token_tiles = wgmma_token_tiles(op.tokens, op.experts, op.counts != nullptr, S::kTokens);
  op.split = whole && op.segments > 1 && op.row_blocks * op.token_tiles <= kWgmmaSplitTiles;
  const int blocks = std::min(wgmma_items(op), stream.multiprocessors());
  launch("linear", stream, matmul_wgmma_f8, static_cast<unsigned>(blocks), S::kThreads, S::kSharedBytes, op);
}

}  // namespace qiao::cuda
