// The products of a way back, in F32 (linear_backward.cu), in BF16 (gradient_bf16.cu), both of which
// token_logprob's takes a piece of the vocabulary at a time, and in FP8 (gradient_f8.cu).
#pragma once

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/matmul.h"
#include "backend/cuda/weight.h"

namespace qiao::cuda {

struct GradientArguments {
  WeightRows weight;  // of the first expert
  int64_t expert_bytes = 0;
  int64_t first_row = 0, end_row = 0;  // of the panel: what is summed; first_row a multiple of 32
  // Rows of dy [tokens, rows]: the panel's row n is at column + n. counts: rows of each expert, or null.
  const float* dy = nullptr;
  int64_t dy_stride = 0, column = 0, tokens = 0;
  const int32_t* counts = nullptr;
  int experts = 1;
  float* dx = nullptr;  // [tokens, K]
  int64_t dx_stride = 0;
  bool add = false;  // to what is there
  int64_t token_tiles = 0;
};

// dx (+)= dy W of the rows of one panel.
void launch_input_gradient(const Stream& stream, GradientArguments arguments);

struct WeightGradientArguments {
  const float* dy = nullptr;  // [tokens, rows]
  int64_t dy_stride = 0;
  const float* x = nullptr;  // [tokens, columns]
  int64_t x_stride = 0;
  int64_t tokens = 0, rows = 0, columns = 0;
  const int32_t* counts = nullptr;
  int experts = 1;
  float* dw = nullptr;  // [experts, rows, columns], dense
};

// dw += dy^T x.
void launch_weight_gradient(const Stream& stream, const WeightGradientArguments& arguments);

// The same with operands rounded to BF16, of a weight in BF16; workspace: bf16_gradient_bytes of as many
// tokens or more, 256-byte aligned.
void run_input_gradient_bf16(const CudaBackend& chip, const GradientArguments& arguments,
                             std::byte* workspace);
void run_weight_gradient_bf16(const CudaBackend& chip, const WeightGradientArguments& arguments,
                              std::byte* workspace);
size_t bf16_gradient_bytes(int64_t experts, int64_t rows, int64_t columns, int64_t tokens);

// The same with operands in E4M3, of a weight of F8_128 with square scales, all of whose rows are summed.
void run_input_gradient_f8(const CudaBackend& chip, const CudaWeight& weight,
                           const GradientArguments& arguments, std::byte* workspace);
void run_weight_gradient_f8(const CudaBackend& chip, const WeightGradientArguments& arguments,
                            std::byte* workspace);
size_t f8_gradient_bytes(const Weight& weight, int64_t tokens);

// The rows of one expert; by whole warps, the same in each lane.
struct RowRange {
  int64_t begin, end;
};
__device__ inline RowRange rows_of_expert(const int32_t* counts, int64_t tokens, int expert) {
  if (counts == nullptr) return {0, tokens};
  int before = 0;
  for (int e = static_cast<int>(threadIdx.x % 32); e < expert; e += 32) before += counts[e];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) before += __shfl_xor_sync(kAllLanes, before, lanes);
  return {before, before + counts[expert]};
}

}  // namespace qiao::cuda
