// Plan: one accumulator of sixteen lanes walks the row (the contract's order), so a row's first pass waits
// for the adder: 4 cycles per 16 elements on Zen 4, the speed of L2; independent rows overlap. The second
// pass reads what the first left in L1.
#pragma once

#include <cmath>

#include "backend/cpu/norm_kernels.h"

namespace qiao::cpu {

template <class V>
struct NormKernel {
  using F = typename V::F;

  static float* row_of(const Tensor& tensor, int64_t row, int64_t inner) {
    float* data = static_cast<float*>(tensor.data);
    if (tensor.rank == 2) return data + row * tensor.stride[0];
    return data + row / inner * tensor.stride[0] + row % inner * tensor.stride[1];
  }

  static void rows(const AddRmsNorm& op, int64_t begin, int64_t end) {
    const bool heads = op.x.rank == 3;
    const int64_t inner = heads ? op.x.shape[1] : 1, columns = heads ? op.x.shape[2] : op.x.shape[1];
    const bool add = op.residual.rank != 0, keep = op.residual_out.rank != 0;
    for (int64_t r = begin; r < end; ++r) {
      const float* x = row_of(op.x, r, inner);
      float* y = row_of(op.y, r, inner);
      // Where the sum is kept between the passes: y, x's own place or residual_out; all are safe to write.
      const float* residual = add ? row_of(op.residual, r, inner) : nullptr;
      float* sum = keep ? row_of(op.residual_out, r, inner) : add ? y : nullptr;
      const float mean = first_pass(x, residual, sum, columns) / static_cast<float>(columns);
      const float factor = 1.0f / std::sqrt(mean + op.epsilon);
      second_pass(sum != nullptr ? sum : x, factor, static_cast<const float*>(op.gamma.data), op.gamma_offset,
                  y, columns);
    }
  }

 private:
  static float first_pass(const float* x, const float* residual, float* sum, int64_t columns) {
    F squares = V::set(0.0f);
    int64_t c = 0;
    for (; c + 16 <= columns; c += 16) {
      F h = V::load(x + c);
      if (residual != nullptr) h = V::add(h, V::load(residual + c));
      if (sum != nullptr) V::store(sum + c, h);
      squares = V::fma(h, h, squares);
    }
    if (const int64_t rest = columns - c; rest > 0) {
      F h = V::load_part(x + c, rest);
      if (residual != nullptr) h = V::add(h, V::load_part(residual + c, rest));
      if (sum != nullptr) V::store_part(sum + c, h, rest);
      squares = V::fma(h, h, squares);
    }
    return V::sum(squares);
  }

  static void second_pass(const float* h, float factor, const float* gamma, float offset, float* y,
                          int64_t columns) {
    const F by = V::set(factor), plus = V::set(offset), one = V::set(1.0f + offset);
    int64_t c = 0;
    for (; c + 16 <= columns; c += 16) {
      const F g = gamma != nullptr ? V::add(V::load(gamma + c), plus) : one;
      V::store(y + c, V::mul(V::mul(V::load(h + c), by), g));
    }
    if (const int64_t rest = columns - c; rest > 0) {
      const F g = gamma != nullptr ? V::add(V::load_part(gamma + c, rest), plus) : one;
      V::store_part(y + c, V::mul(V::mul(V::load_part(h + c, rest), by), g), rest);
    }
  }
};

}  // namespace qiao::cpu
