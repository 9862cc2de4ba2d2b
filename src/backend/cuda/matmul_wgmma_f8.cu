// FP8 with many tokens on Hopper: matmul_wgmma_f8.h. And the tokens as its blocks take them, once for all
// rows of the weight: [block of 128 columns][token, rounded up to 8][128 numbers], each row's 16-byte pieces
// where wgmma looks for them (instructions.h); then the scales, [block][token]. A warp has a block of a
// token; one pass over memory. Not yet run on a device.
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
    const uint32_t numbers = quantize_four_f8(values, scale);
    uint8_t* to = out + i * 128 + (lane / 4 ^ static_cast<int>(token % 8)) * 16 + lane % 4 * 4;
    *reinterpret_cast<uint32_t*>(to) = numbers;
    if (lane == 0) scales[i] = scale;
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

void launch_matmul_wgmma_f8(const Stream& stream, MatmulArguments op) {
  const int size = plan_wgmma(op, stream.multiprocessors(), 192);
  with_wgmma_tile<192>(size, [&](auto tokens) { launch_wgmma_f8<WgmmaF8Shape<tokens()>>(stream, op); });
}

}  // namespace qiao::cuda
