// Activations for the tensor cores, once for all rows of the weight: a thread has four elements, eight lanes
// a block of 32, a warp one of 128. One pass over memory. Measured: docs/h200.md.
#include "backend/cuda/prepare.h"

namespace qiao::cuda {
namespace {

constexpr int kPrepareThreads = 256;

template <Compute kCompute>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_rows(const float* x, int64_t stride, int64_t tokens, int64_t width,
                 RowOperand<kCompute> operand) {
  begin_kernel();
  // columns is a multiple of 64: a warp has at most two rows, and all its lanes are inside or none is. In kF8
  // it is one of 128: a warp has a block.
  const int64_t fours = operand.columns / 4, count = tokens * fours;
  const int64_t step = int64_t{gridDim.x} * kPrepareThreads;
  for (int64_t i = int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x; i - threadIdx.x % 32 < count;
       i += step) {
    const bool inside = i < count;
    const int64_t row = inside ? i / fours : 0, k = inside ? i % fours * 4 : width;
    float four[4];
    load_four_of(x + row * stride, k, width, four);
    operand.put(four, row, k, inside);
  }
}

template <Compute kCompute>
void launch_prepare(const Stream& stream, const MatmulArguments& op, uint8_t* prepared,
                    ActivationMeta* meta) {
  const RowOperand<kCompute> operand{prepared, meta, op.prepared_columns};
  if (op.norm.present) return launch_prepare_normed(stream, op, op.tokens, operand);
  launch("linear", stream, prepare_rows<kCompute>,
         blocks_for(op.tokens * op.prepared_columns / 4, kPrepareThreads), kPrepareThreads, 0, op.x,
         op.x_stride, op.tokens, op.weight.columns, operand);
}

}  // namespace

void launch_prepare_bf16(const Stream& stream, const MatmulArguments& op, uint8_t* prepared) {
  launch_prepare<Compute::kBF16>(stream, op, prepared, nullptr);
}

void launch_prepare_q8(const Stream& stream, const MatmulArguments& op, uint8_t* prepared,
                       ActivationMeta* meta) {
  launch_prepare<Compute::kQ8>(stream, op, prepared, meta);
}

void launch_prepare_f8(const Stream& stream, const MatmulArguments& op, uint8_t* prepared,
                       ActivationMeta* meta) {
  launch_prepare<Compute::kF8>(stream, op, prepared, meta);
}

}  // namespace qiao::cuda
