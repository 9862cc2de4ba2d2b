// FP8 with many tokens on Hopper: matmul_wgmma_f8.h. And the tokens as its blocks take them, once for all
// rows of the weight (F8PieceOperand). A warp has a block of a token; one pass over memory. Not yet run on a
// device.
#include "backend/cuda/matmul_wgmma_f8.h"

#include "backend/cuda/prepare.h"

namespace qiao::cuda {
namespace {

constexpr int kPrepareF8Threads = 256;

__global__ void __launch_bounds__(kPrepareF8Threads)
    prepare_f8_pieces(const float* x, int64_t stride, int64_t tokens, int64_t blocks,
                      F8PieceOperand operand) {
  begin_kernel();
  const int64_t count = blocks * operand.rows;
  const bool aligned = aligned_16(x) && stride % 4 == 0;
  for (int64_t i = int64_t{blockIdx.x} * (kPrepareF8Threads / 32) + threadIdx.x / 32; i < count;
       i += int64_t{gridDim.x} * (kPrepareF8Threads / 32)) {
    const int64_t token = i % operand.rows, k = i / operand.rows * kF8Block + 4 * (threadIdx.x % 32);
    float4 four = make_float4(0, 0, 0, 0);
    if (token < tokens) four = load_four(x + token * stride, k, blocks * kF8Block, aligned);
    const float values[4] = {four.x, four.y, four.z, four.w};
    operand.put(values, token, k, true);
  }
}

}  // namespace

void launch_prepare_wgmma_f8(const Stream& stream, const MatmulArguments& op, uint8_t* prepared,
                             ActivationMeta* meta) {
  const F8PieceOperand operand{prepared, reinterpret_cast<float*>(meta), ceil_div(op.tokens, 8) * 8};
  if (op.norm.present) return launch_prepare_normed(stream, op, operand.rows, operand);
  const int64_t blocks = op.weight.columns / kF8Block;
  launch("linear", stream, prepare_f8_pieces, blocks_for(operand.rows * blocks * 32, kPrepareF8Threads),
         kPrepareF8Threads, 0, op.x, op.x_stride, op.tokens, blocks, operand);
}

void launch_matmul_wgmma_f8(const Stream& stream, MatmulArguments op) {
  const int size = plan_wgmma(op, stream.multiprocessors(), 192);
  with_wgmma_tile<192>(size, [&](auto tokens) { launch_wgmma_f8<WgmmaF8Shape<tokens()>>(stream, op); });
}

}  // namespace qiao::cuda
