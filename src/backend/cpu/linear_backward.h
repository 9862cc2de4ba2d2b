// The two products of linear's way back, for ops that make dy themselves.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/linear_backward_kernels.h"
#include "backend/cpu/matmul.h"

namespace qiao::cpu {

// What a product runs with: instructions, threads, gradient_workspace_bytes() of 64-byte aligned memory, and
// what operands are rounded to (kF32, kBF16 or kF8).
struct GradientContext {
  const LinearKernels& linear;
  const LinearBackwardKernels& kernels;
  ThreadPool& pool;
  std::byte* workspace;
  Compute compute = Compute::kF32;
};

// For T rows of dy, N columns of it, K columns of the weight; monotone in T.
size_t gradient_workspace_bytes(int64_t tokens, int64_t rows, int64_t columns, Compute compute, int threads);

// Rows of one expert of a weight from `first` on, where a group of 16 begins in its segment.
struct WeightRows {
  const CpuWeight& weight;
  int64_t first = 0, expert = 0;
};

// dx[t, k] = (add ? dx[t, k] : 0) + sum over n of dy[t, n] * W[n, k], n ascending (in kBF16 perhaps by pairs
// of them), for the first dy.shape[1] of the weight's rows, to where a group of 16 ends.
void input_gradient(const Tensor& dy, const WeightRows& weight, const Tensor& dx, bool add,
                    const GradientContext& context);

// dw[n, k] += sum over t of dy[t, n] * x[t, k], t ascending (or by pairs). dw is dense.
void weight_gradient(const Tensor& dy, const Tensor& x, float* dw, const GradientContext& context);

// The op, for a given set of instructions (tests run it for each that the machine has).
size_t linear_backward_workspace_bytes(const LinearBackward& op, int threads);
void run_linear_backward(const LinearBackward& op, const LinearKernels& linear,
                         const LinearBackwardKernels& kernels, ThreadPool& pool);
size_t linear_backward_workspace_bytes(const GroupedLinearBackward& op, int threads);
void run_linear_backward(const GroupedLinearBackward& op, const LinearKernels& linear,
                         const LinearBackwardKernels& kernels, ThreadPool& pool);

}  // namespace qiao::cpu
