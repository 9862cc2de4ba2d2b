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

  static void factors(const AddRmsNormBackward& op, int64_t begin, int64_t end, float* factors) {
    const Rows row(op.dy);
    for (int64_t r = begin; r < end; ++r) {
      const float squares = first_pass(row_of(op.h, r, row.inner), nullptr, nullptr, row.columns);
      factors[r - begin] = 1.0f / std::sqrt(squares / static_cast<float>(row.columns) + op.epsilon);
    }
  }

  static void dgamma(const AddRmsNormBackward& op, int64_t begin, int64_t end, int64_t first, int64_t last,
                     const float* factors) {
    const Rows row(op.dy);
    float* out = static_cast<float*>(op.dgamma.data);
    int64_t c = first;
    for (; c + 64 <= last; c += 64) dgamma_columns<4>(op, row, begin, end, c, 64, factors, out);
    for (; c < last; c += 16) {
      dgamma_columns<1>(op, row, begin, end, c, last - c < 16 ? last - c : 16, factors, out);
    }
  }

  static void dh(const AddRmsNormBackward& op, int64_t begin, int64_t end, const float* factors) {
    const Rows row(op.dy);
    const float* gamma = static_cast<const float*>(op.gamma.data);
    const F offset = V::set(op.gamma_offset), one = V::set(1.0f + op.gamma_offset);
    for (int64_t r = begin; r < end; ++r) {
      const float* dy = row_of(op.dy, r, row.inner);
      const float* h = row_of(op.h, r, row.inner);
      const float* more = op.dresidual_out.rank != 0 ? row_of(op.dresidual_out, r, row.inner) : nullptr;
      float* out = row_of(op.dh, r, row.inner);
      const auto gained = [&](int64_t c, int64_t n) {  // g * dy
        const F g = gamma != nullptr ? V::add(V::load_part(gamma + c, n), offset) : one;
        return V::mul(g, V::load_part(dy + c, n));
      };
      F dots = V::set(0.0f);
      for (int64_t c = 0; c < row.columns; c += 16) {
        const int64_t n = row.columns - c < 16 ? row.columns - c : 16;
        dots = V::fma(gained(c, n), V::load_part(h + c, n), dots);
      }
      // The mean of g dy times the normalised h: no product of r with r, which might underflow.
      const float factor = factors[r - begin];
      const F by = V::set(factor), mean = V::set(V::sum(dots) * factor / static_cast<float>(row.columns));
      for (int64_t c = 0; c < row.columns; c += 16) {
        const int64_t n = row.columns - c < 16 ? row.columns - c : 16;
        const F normal = V::mul(V::load_part(h + c, n), by);
        F d = V::mul(by, V::fnma(normal, mean, gained(c, n)));
        if (more != nullptr) d = V::add(V::load_part(more + c, n), d);
        V::store_part(out + c, d, n);
      }
    }
  }

 private:
  struct Rows {
    int64_t inner, columns;
    explicit Rows(const Tensor& x)
        : inner(x.rank == 3 ? x.shape[1] : 1), columns(x.rank == 3 ? x.shape[2] : x.shape[1]) {}
  };

  // dgamma of `count` columns, in N vectors.
  template <int N>
  static void dgamma_columns(const AddRmsNormBackward& op, const Rows& row, int64_t begin, int64_t end,
                             int64_t c, int64_t count, const float* factors, float* out) {
    const int64_t last = count - 16 * (N - 1);  // elements of the last vector
    F sums[N];
    for (int i = 0; i < N; ++i) sums[i] = V::load_part(out + c + 16 * i, i == N - 1 ? last : 16);
    for (int64_t r = begin; r < end; ++r) {
      const float* dy = row_of(op.dy, r, row.inner) + c;
      const float* h = row_of(op.h, r, row.inner) + c;
      const F by = V::set(factors[r - begin]);
      for (int i = 0; i < N; ++i) {
        const int64_t n = i == N - 1 ? last : 16;
        const F normal = V::mul(V::load_part(h + 16 * i, n), by);
        sums[i] = V::fma(V::load_part(dy + 16 * i, n), normal, sums[i]);
      }
    }
    for (int i = 0; i < N; ++i) V::store_part(out + c + 16 * i, sums[i], i == N - 1 ? last : 16);
  }

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
