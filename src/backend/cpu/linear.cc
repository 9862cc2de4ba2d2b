// y = x W^T over all formats. Plan: the columns of y go in pairs of groups (32) to the threads, each pair
// unpacked chunk by chunk and multiplied with a block of rows of x that stays in the L2 cache; weights are
// streamed once a block of rows, so once in all for up to kRowBlock rows. The kernels and their limits are in
// linear_micro_inl.h.
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/gated_activation_kernels.h"
#include "backend/cpu/matmul.h"

namespace qiao::cpu {
namespace {

// y = sums + residual (which may be y), or sums alone. `columns` is nearly always a constant to the compiler.
inline void write_row(float* y, const float* sums, const float* residual, int64_t columns) {
  float values[kPair * 16];
  for (int64_t n = 0; n < columns; ++n) values[n] = sums[n];
  if (residual != nullptr) {
    for (int64_t n = 0; n < columns; ++n) values[n] += residual[n];
  }
  std::copy_n(values, columns, y);
}

void write(const Linear& op, const GatedActivationKernels& activations, const float* sums, int64_t row,
           int64_t rows, int64_t column, int64_t columns, int64_t first_column) {
  constexpr int64_t kColumns = kPair * 16;
  const float* bias = op.bias.present() ? op.bias.as<float>() + column : nullptr;
  for (int64_t t = 0; t < rows; ++t, sums += kColumns) {
    float* y = op.y.as<float>() + (row + t) * op.y.stride[0] + column - first_column;
    const float* residual = op.residual.present()
                                ? op.residual.as<float>() + (row + t) * op.residual.stride[0] + column
                                : nullptr;
    const float* from = sums;
    float values[kColumns];
    if (bias != nullptr || op.activation != Activation::kNone) {
      for (int64_t n = 0; n < columns; ++n) values[n] = bias == nullptr ? sums[n] : sums[n] + bias[n];
      if (op.activation == Activation::kSoftCap) {
        for (int64_t n = 0; n < columns; ++n) values[n] = op.soft_cap * std::tanh(values[n] / op.soft_cap);
      } else if (op.activation != Activation::kNone) {
        activations.activate(op.activation, values, columns);
      }
      from = values;
    }
    columns == kColumns ? write_row(y, from, residual, kColumns) : write_row(y, from, residual, columns);
  }
}

}  // namespace

// Their quants should stay in about half of the L2 cache.
int64_t row_block(int64_t rows, int64_t columns, Compute compute) {
  static const int64_t l2 = [] {
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or -1 where it is not known
    return std::clamp<int64_t>(bytes, int64_t{512} << 10, int64_t{1} << 20);
  }();
  const int64_t row = columns * (compute == Compute::kQ8 ? 2 : 4);
  const int64_t fitting = std::clamp<int64_t>(l2 / 4 * 3 / row / 4 * 4, 32, kRowBlock);
  const int64_t blocks = (rows + fitting - 1) / fitting;
  return std::min(fitting, ((rows + blocks - 1) / blocks + 3) / 4 * 4);
}

// Few rows: long runs of memory for the prefetchers. Many: small chunks for balance.
int64_t pair_grain(const CpuWeight& weight, int64_t tasks, int64_t rows, int threads) {
  const int64_t pair_bytes = std::max<int64_t>(1, static_cast<int64_t>(weight.bytes()) / pair_count(weight));
  const int64_t fair = std::max<int64_t>(1, tasks / (threads * 8));
  return std::min(fair, rows <= 16 ? std::max<int64_t>(1, 262144 / pair_bytes) : 4);
}

size_t linear_workspace_bytes(const Linear& op, int threads) {
  return matmul_workspace_bytes(op.x.shape[0], op.x.shape[1], op.compute, threads);
}

void run_linear(const Linear& op, const LinearKernels& kernels, ThreadPool& pool) {
  const int64_t rows = op.x.shape[0], columns = op.x.shape[1];
  if (rows == 0) return;
  const auto& weight = static_cast<const CpuWeight&>(*op.weight);
  auto* workspace = op.workspace.as<std::byte>();
  const Activations activations = prepare(op.x, weight, op.compute, kernels, pool, workspace);
  multiply_pairs(op, activations, {0, pair_count(weight), 0}, scratches(rows, columns, op.compute, workspace),
                 kernels, pool);
}

void multiply_pairs(const Linear& op, const Activations& activations, const RunOfPairs& run,
                    MatmulScratch* scratch, const LinearKernels& kernels, ThreadPool& pool) {
  const auto& weight = static_cast<const CpuWeight&>(*op.weight);
  const int64_t rows = op.x.shape[0], columns = op.x.shape[1];
  const GatedActivationKernels& activate =
      choose(kGatedActivationGeneric, kGatedActivationAvx2, kGatedActivationAvx512);
  const int64_t pairs = run.count;
  const int64_t block = row_block(rows, columns, op.compute);
  const int64_t blocks = (rows + block - 1) / block;
  const int64_t grain = pair_grain(weight, pairs * blocks, rows, pool.size());
  pool.parallel_for(pairs * blocks, grain, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const PairOfGroups pair = find_pair(weight, run.first + i % pairs);
      const int64_t row = i / pairs * block;
      const int64_t count = std::min(block, rows - row);
      multiply_pair(kernels, *pair.panels, panels_of(weight, 0, pair), pair.groups, activations, row, count,
                    scratch[worker]);
      write(op, activate, scratch[worker].sums.data(), row, count, pair.column(), pair.columns(),
            run.first_column);
    }
  });
}

size_t CpuBackend::kernel_workspace_bytes(const Linear& op) const {
  return linear_workspace_bytes(op, pool_.size());
}

void CpuBackend::do_linear(const Linear& op) { run_linear(op, linear_kernels(active_isa()), pool_); }

}  // namespace qiao::cpu
