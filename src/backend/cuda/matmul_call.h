// What the ops with products in them ask of the kernels (matmul.h): how K is cut, who adds up, where scratch
// memory lies.
#pragma once

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/matmul.h"
#include "backend/cuda/weight.h"

namespace qiao::cuda {

struct MatmulCall {
  const CudaWeight* weight = nullptr;
  int64_t first_row = 0, end_row = 0;  // of the weight's, those that are computed
  Compute compute = Compute::kF32;
  const float* x = nullptr;
  int64_t x_stride = 0, tokens = 0;
  const int32_t* counts = nullptr;  // on the device; null: every row is expert 0's
  RowNorm norm;                     // of x's rows; where matmul_norms()
  float* y = nullptr;               // [tokens, end_row - first_row]
  int64_t y_stride = 0;
  const float* bias = nullptr;  // of the rows from first_row on, as residual
  const float* residual = nullptr;
  int64_t residual_stride = 0;
  Activation activation = Activation::kNone;
  float soft_cap = 0;
  bool gated = false;  // matmul.h's; of up to matmul_gates_to() tokens
};

// Whether run_matmul norms rows of x itself.
bool matmul_norms(const CudaBackend& chip, const Weight& weight, Compute compute);
// The most tokens with which run_matmul takes `gated`: INT64_MAX where any, 0 where it never does.
int64_t matmul_gates_to(const CudaBackend& chip, const Weight& weight, Compute compute);
// Of any call with as many tokens or fewer.
size_t matmul_workspace_bytes(const Weight& weight, Compute compute, int64_t tokens, bool gated = false);
void run_matmul(const CudaBackend& chip, const MatmulCall& call, std::byte* workspace);

}  // namespace qiao::cuda
