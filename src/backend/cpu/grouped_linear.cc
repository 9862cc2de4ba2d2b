// Linear for a mixture of experts: (expert, pair of groups) is a task, experts without rows cost a look. Its
// way back is linear's, expert by expert, each by all threads.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_class.h"
#include "backend/cpu/linear_backward.h"
#include "backend/cpu/matmul.h"

namespace qiao::cpu {

size_t linear_workspace_bytes(const GroupedLinear& op, int threads) {
  return matmul_workspace_bytes(op.x.shape[0], op.x.shape[1], op.compute, threads);
}

void run_grouped_linear(const GroupedLinear& op, const LinearKernels& kernels, ThreadPool& pool) {
  const int64_t rows = op.x.shape[0], columns = op.x.shape[1];
  if (rows == 0) return;
  const auto& weight = static_cast<const CpuWeight&>(*op.weight);
  auto* workspace = op.workspace.as<std::byte>();
  const Activations activations = prepare(op.x, weight, op.compute, kernels, pool, workspace);
  MatmulScratch* scratch = scratches(rows, columns, op.compute, workspace);

  const auto* counts = op.counts.as<int32_t>();
  const int64_t pairs = pair_count(weight);
  const int64_t tasks = weight.experts() * pairs;
  pool.parallel_for(tasks, std::clamp<int64_t>(tasks / (pool.size() * 64), 1, 16),
                    [&](int64_t begin, int64_t end, int worker) {
                      int64_t expert = begin / pairs, first = 0;
                      for (int64_t e = 0; e < expert; ++e) first += counts[e];
                      for (int64_t i = begin; i < end; ++i) {
                        if (i / pairs != expert) first += counts[expert++];
                        const int64_t last = first + counts[expert];
                        const PairOfGroups pair = find_pair(weight, i % pairs);
                        for (int64_t row = first; row < last; row += kRowBlock) {
                          const int64_t count = std::min(kRowBlock, last - row);
                          multiply_pair(kernels, *pair.panels, panels_of(weight, expert, pair), pair.groups,
                                        activations, row, count, scratch[worker]);
                          for (int64_t t = 0; t < count; ++t) {
                            std::memcpy(op.y.as<float>() + (row + t) * op.y.stride[0] + pair.column(),
                                        scratch[worker].sums.data() + t * kPair * 16,
                                        static_cast<size_t>(pair.columns()) * sizeof(float));
                          }
                        }
                      }
                    });
}

size_t CpuBackend::kernel_workspace_bytes(const GroupedLinear& op) const {
  return linear_workspace_bytes(op, pool_.size());
}

void CpuBackend::do_grouped_linear(const GroupedLinear& op) {
  run_grouped_linear(op, linear_kernels(active_isa()), pool_);
}

size_t linear_backward_workspace_bytes(const GroupedLinearBackward& op, int threads) {
  return gradient_workspace_bytes(op.dy.shape[0], op.weight->rows(), op.weight->columns(), op.compute,
                                  threads);
}

void run_linear_backward(const GroupedLinearBackward& op, const LinearKernels& linear,
                         const LinearBackwardKernels& kernels, ThreadPool& pool) {
  const GradientContext context{linear, kernels, pool, op.workspace.as<std::byte>(), op.compute};
  const auto& weight = static_cast<const CpuWeight&>(*op.weight);
  int64_t first = 0;
  for (int64_t expert = 0; expert < weight.experts(); ++expert) {
    const int64_t rows = op.counts.as<int32_t>()[expert];
    const Tensor dy = op.dy.slice(first, rows);
    if (op.dx.present())
      input_gradient(dy, {weight, 0, expert}, op.dx.slice(first, rows), op.add_dx, context);
    if (op.dw.present()) {
      float* dw = op.dw.as<float>() + expert * weight.rows() * weight.columns();
      weight_gradient(dy, op.x.slice(first, rows), dw, context);
    }
    first += rows;
  }
}

size_t CpuBackend::workspace_bytes(const GroupedLinearBackward& op) const {
  return linear_backward_workspace_bytes(op, pool_.size());
}

void CpuBackend::do_grouped_linear_backward(const GroupedLinearBackward& op) {
  run_linear_backward(op, linear_kernels(active_isa()), gradient_kernels(active_isa()), pool_);
}

}  // namespace qiao::cpu
