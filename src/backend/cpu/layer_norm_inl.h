// Plan: three walks over a row that lies in L1: the sum h into y with its mean, the squares of the
// differences, the result. One accumulator of sixteen lanes (the contract's order), so the first two wait for
// the adder; independent rows overlap.
#pragma once

#include <cmath>

#include "backend/cpu/layer_norm_kernels.h"

namespace qiao::cpu {

template <class V>
struct LayerNormKernel {
  using F = typename V::F;

  static void rows(const LayerNorm& op, int64_t begin, int64_t end) {
    const int64_t columns = op.x.shape[1];
    const auto count = static_cast<float>(columns);
    const float* gamma = static_cast<const float*>(op.gamma.data);
    const float* beta = static_cast<const float*>(op.beta.data);
    for (int64_t r = begin; r < end; ++r) {
      const float* x = static_cast<const float*>(op.x.data) + r * op.x.stride[0];
      const float* residual = op.residual.rank != 0
                                  ? static_cast<const float*>(op.residual.data) + r * op.residual.stride[0]
                                  : nullptr;
      float* y = static_cast<float*>(op.y.data) + r * op.y.stride[0];
      F sum = V::set(0.0f);
      each(columns, [&](int64_t c, auto load, auto store) {
        F h = load(x + c);
        if (residual != nullptr) h = V::add(h, load(residual + c));
        store(y + c, h);
        sum = V::add(sum, h);
      });
      const F mean = V::set(V::sum(sum) / count);
      F squares = V::set(0.0f);
      each(columns, [&](int64_t c, auto load, auto store) {
        store(y + c, V::sub(load(y + c), mean));
        const F d = load(y + c);  // read again: lanes past the row are 0, not minus the mean
        squares = V::fma(d, d, squares);
      });
      const F factor = V::set(1.0f / std::sqrt(V::sum(squares) / count + op.epsilon));
      each(columns, [&](int64_t c, auto load, auto store) {
        const F scaled = V::mul(V::mul(load(y + c), factor), load(gamma + c));
        store(y + c, beta != nullptr ? V::add(scaled, load(beta + c)) : scaled);
      });
    }
  }

 private:
  // Calls body(column, load, store) for each sixteen columns, the last time with those that are left.
  template <typename Body>
  static void each(int64_t columns, Body body) {
    int64_t c = 0;
    for (; c + 16 <= columns; c += 16)
      body(
          c, [](const float* p) { return V::load(p); }, [](float* p, F f) { V::store(p, f); });
    if (const int64_t rest = columns - c; rest > 0) {
      body(
          c, [rest](const float* p) { return V::load_part(p, rest); },
          [rest](float* p, F f) { V::store_part(p, f, rest); });
    }
  }
};

}  // namespace qiao::cpu
