// muon: five times three products of one matrix, which are the limit, in F32 without tensor cores (the five
// steps' bound is F32's). A product has tiles of 64 x 64, whose operands pass through shared memory sixteen
// deep; each of 256 threads has 4 x 4 sums in registers and adds in ascending order. What is done element by
// element passes over memory once.
#include "backend/ops/muon.h"

#include <cmath>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kernel.h"

namespace qiao::cuda {
namespace {

constexpr int kMuonThreads = 256, kTile = 64, kDepth = 16;

struct MuonShape {
  int64_t least, most;  // of N and K
  explicit MuonShape(const Muon& op)
      : least(std::min(op.parameters.shape[0], op.parameters.shape[1])),
        most(std::max(op.parameters.shape[0], op.parameters.shape[1])) {}
  static int64_t up(int64_t floats) { return (floats + 63) / 64 * 64; }
  int64_t matrix() const { return up(least * most); }
  int64_t square() const { return up(least * least); }
  size_t bytes() const { return static_cast<size_t>(2 * matrix() + 2 * square()) * sizeof(float) + 64; }
};

// momentum's new value, and the update that follows from it; where `is_tall`, its transpose [K, N].
__global__ void __launch_bounds__(kMuonThreads)
    muon_momentum(const float* gradients, float* momentum, float* update, int64_t rows, int64_t columns,
                  bool is_tall, float scale, float beta, float rest, bool nesterov) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kMuonThreads + threadIdx.x;
  if (i >= rows * columns) return;
  const float share = rest * (scale * gradients[i]);
  const float m = beta * momentum[i] + share;
  momentum[i] = m;
  const int64_t to = is_tall ? i % columns * rows + i / columns : i;
  update[to] = nesterov ? share + beta * m : m;
}

__global__ void __launch_bounds__(kMuonThreads)
    muon_normalize(float* x, int64_t count, const double* squares) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kMuonThreads + threadIdx.x;
  const double norm = sqrt(*squares);
  const auto inverse = static_cast<float>(1 / (norm > Muon::kLeastNorm ? norm : Muon::kLeastNorm));
  if (i < count) x[i] *= inverse;
}

// out[i, j] = by * sum_k a[i, k] * b(k, j) + plus * c[i, j], with b [K, columns] row-major or, kTransposed,
// [columns, K]; all without gaps. c may be null.
template <bool kTransposed>
__global__ void __launch_bounds__(kMuonThreads)
    muon_multiply(const float* a, const float* b, int64_t rows, int64_t depth, int64_t columns, float by,
                  const float* c, float plus, float* out) {
  begin_kernel();
  QIAO_SHARED(float, a_tile, kDepth*(kTile + 4));
  QIAO_SHARED(float, b_tile, kDepth*(kTile + 4));
  constexpr int kStride = kTile + 4;
  const int64_t row = int64_t{blockIdx.y} * kTile, column = int64_t{blockIdx.x} * kTile;
  const int x = static_cast<int>(threadIdx.x % 16) * 4, y = static_cast<int>(threadIdx.x / 16) * 4;
  float sum[4][4] = {};
  for (int64_t first = 0; first < depth; first += kDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kMuonThreads) {
      const int k = i % kDepth, r = i / kDepth;
      const bool inside = row + r < rows && first + k < depth;
      a_tile[k * kStride + r] = inside ? a[(row + r) * depth + first + k] : 0.0f;
      if constexpr (kTransposed) {
        const bool in_b = column + r < columns && first + k < depth;
        b_tile[k * kStride + r] = in_b ? b[(column + r) * depth + first + k] : 0.0f;
      } else {
        const int j = i % kTile, d = i / kTile;
        const bool in_b = column + j < columns && first + d < depth;
        b_tile[d * kStride + j] = in_b ? b[(first + d) * columns + column + j] : 0.0f;
      }
    }
    __syncthreads();
    for (int k = 0; k < kDepth; ++k) {
      const float4 left = *reinterpret_cast<const float4*>(a_tile + k * kStride + y);
      const float4 right = *reinterpret_cast<const float4*>(b_tile + k * kStride + x);
      const float l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(l[i], r[j], sum[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (row + y + i >= rows || column + x + j >= columns) continue;
      const int64_t at = (row + y + i) * columns + column + x + j;
      out[at] = c == nullptr ? by * sum[i][j] : by * sum[i][j] + plus * c[at];
    }
  }
}

__global__ void __launch_bounds__(kMuonThreads)
    muon_step(float* parameters, const float* x, int64_t rows, int64_t columns, bool is_tall, float decay,
              float size) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kMuonThreads + threadIdx.x;
  if (i >= rows * columns) return;
  const int64_t from = is_tall ? i % columns * rows + i / columns : i;
  parameters[i] = decay * parameters[i] - size * x[from];
}

}  // namespace

size_t CudaBackend::workspace_bytes(const Muon& op) const { return MuonShape(op).bytes(); }

void CudaBackend::do_muon(const Muon& op) {
  const MuonShape shape(op);
  const int64_t n = op.parameters.shape[0], k = op.parameters.shape[1], count = n * k;
  const bool is_tall = n > k;
  auto* squares = op.workspace.as<double>();
  auto* x = reinterpret_cast<float*>(squares + 8);  // X [least, most]
  float* next = x + shape.matrix();
  float* square = next + shape.matrix();
  float* factor = square + shape.square();
  const auto rounded = [](double value) { return static_cast<float>(value); };
  const unsigned blocks = blocks_for(count, kMuonThreads);
  launch("muon", stream_, muon_momentum, blocks, kMuonThreads, 0, op.gradients.as<float>(),
         op.momentum.as<float>(), x, n, k, is_tall, rounded(op.gradient_scale), rounded(op.beta),
         rounded(1 - op.beta), op.nesterov);
  QIAO_CUDA(cudaMemsetAsync(squares, 0, sizeof *squares, stream_.handle()));
  do_sum_of_squares({Tensor(x, DType::kF32, {count}), Tensor(squares, DType::kF64, {1})});
  launch("muon", stream_, muon_normalize, blocks, kMuonThreads, 0, x, count, squares);
  const auto multiply = [&](auto kernel, const float* a, const float* b, int64_t depth, int64_t columns,
                            float by, const float* c, float plus, float* out) {
    const dim3 grid(blocks_for(columns, kTile), blocks_for(shape.least, kTile));
    launch("muon", stream_, kernel, grid, kMuonThreads, 0, a, b, shape.least, depth, columns, by, c, plus,
           out);
  };
  const float a = rounded(Muon::kA), b = rounded(Muon::kB), c = rounded(Muon::kC);
  for (int step = 0; step < Muon::kSteps; ++step) {
    multiply(muon_multiply<true>, x, x, shape.most, shape.least, 1.0f, nullptr, 0.0f, square);
    multiply(muon_multiply<false>, square, square, shape.least, shape.least, c, square, b, factor);
    multiply(muon_multiply<false>, factor, x, shape.least, shape.most, 1.0f, x, a, next);
    std::swap(x, next);
  }
  launch("muon", stream_, muon_step, blocks, kMuonThreads, 0, op.parameters.as<float>(), x, n, k, is_tall,
         rounded(1 - op.learning_rate * op.weight_decay), rounded(op.step_size()));
}

}  // namespace qiao::cuda
