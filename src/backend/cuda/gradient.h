// The products of a way back (linear_backward.cu), which token_logprob's takes a piece of the vocabulary at a
// time.
#pragma once

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

}  // namespace qiao::cuda
