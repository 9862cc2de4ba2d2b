// Activations for the tensor cores, once for all rows of the weight: a thread has four elements, eight lanes
// a block of 32, a warp one of 128. One pass over memory. Measured: docs/h200.md.
#include "backend/cuda/activation_rows.h"

namespace qiao::cuda {
namespace {

constexpr int kPrepareThreads = 256;

template <Compute kCompute>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_rows(const float* x, int64_t stride, int64_t tokens, int64_t width, int64_t columns, uint8_t* out,
                 ActivationMeta* meta) {
  begin_kernel();
  // columns is a multiple of 64: a warp has at most two rows, and all its lanes are inside or none is. In kF8
  // it is one of 128: a warp has a block.
  const int64_t fours = columns / 4, count = tokens * fours, step = int64_t{gridDim.x} * kPrepareThreads;
  for (int64_t i = int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x; i - threadIdx.x % 32 < count;
       i += step) {
    const bool inside = i < count;
    const int64_t row = inside ? i / fours : 0, k = inside ? i % fours * 4 : width;
    float four[4];
    load_four_of(x + row * stride, k, width, four);
    if constexpr (kCompute == Compute::kF8) {
      float scale;
      const uint32_t numbers = quantize_four_f8(four, scale);
      if (!inside) continue;
      *reinterpret_cast<uint32_t*>(out + row * columns + k) = numbers;
      if (threadIdx.x % 32 == 0) meta[row * (columns / kF8Block) + k / kF8Block] = {scale, 0};
    } else if constexpr (kCompute == Compute::kQ8) {
      ActivationMeta of_block;
      const uint32_t quants = quantize_four(four, of_block);
      if (!inside) continue;
      *reinterpret_cast<uint32_t*>(out + row * columns + k) = quants;
      if (threadIdx.x % 8 == 0) meta[row * (columns / 32) + k / 32] = of_block;
    } else if (inside) {
      *reinterpret_cast<uint2*>(out + (row * columns + k) * 2) =
          make_uint2(two_bf16(four[0], four[1]), two_bf16(four[2], four[3]));
    }
  }
}

}  // namespace

void launch_prepare_bf16(const Stream& stream, const MatmulArguments& op, uint8_t* prepared) {
  launch("linear", stream, prepare_rows<Compute::kBF16>,
         blocks_for(op.tokens * op.prepared_columns / 4, kPrepareThreads), kPrepareThreads, 0, op.x,
         op.x_stride, op.tokens, op.weight.columns, op.prepared_columns, prepared, nullptr);
}

void launch_prepare_q8(const Stream& stream, const MatmulArguments& op, uint8_t* prepared,
                       ActivationMeta* meta) {
  launch("linear", stream, prepare_rows<Compute::kQ8>,
         blocks_for(op.tokens * op.prepared_columns / 4, kPrepareThreads), kPrepareThreads, 0, op.x,
         op.x_stride, op.tokens, op.weight.columns, op.prepared_columns, prepared, meta);
}

void launch_prepare_f8(const Stream& stream, const MatmulArguments& op, uint8_t* prepared,
                       ActivationMeta* meta) {
  launch("linear", stream, prepare_rows<Compute::kF8>,
         blocks_for(op.tokens * op.prepared_columns / 4, kPrepareThreads), kPrepareThreads, 0, op.x,
         op.x_stride, op.tokens, op.weight.columns, op.prepared_columns, prepared, meta);
}

}  // namespace qiao::cuda
