// Plan: 64 columns of y stay in registers while the picks' rows are added in order; each byte of the rows is
// read once, so the limit is memory.
#pragma once

#include "backend/cpu/moe_kernels.h"

namespace qiao::cpu {

template <class V>
struct MoeKernel {
  using F = typename V::F;

  static void combine(const MoeCombine& op, int64_t begin, int64_t end) {
    const int64_t columns = op.y.shape[1];
    for (int64_t t = begin; t < end; ++t) {
      int64_t c = 0;
      for (; c + 64 <= columns; c += 64) run<4>(op, t, c, 16);
      for (; c < columns; c += 16) run<1>(op, t, c, columns - c < 16 ? columns - c : 16);
    }
  }

 private:
  template <int N>
  static void run(const MoeCombine& op, int64_t t, int64_t c, int64_t last) {
    const auto load = [last](const float* p) { return N == 1 ? V::load_part(p, last) : V::load(p); };
    F y[N];
    for (int i = 0; i < N; ++i) {
      y[i] = op.residual.rank != 0
                 ? load(static_cast<const float*>(op.residual.data) + t * op.residual.stride[0] + c + 16 * i)
                 : V::set(0.0f);
    }
    for (int64_t j = 0; j < op.places.shape[1]; ++j) {
      const int64_t place =
          static_cast<const int32_t*>(op.places.data)[t * op.places.stride[0] + j * op.places.stride[1]];
      const F weight = V::set(
          static_cast<const float*>(op.weights.data)[t * op.weights.stride[0] + j * op.weights.stride[1]]);
      const float* row = static_cast<const float*>(op.sorted.data) + place * op.sorted.stride[0] + c;
      for (int i = 0; i < N; ++i) y[i] = V::fma(weight, load(row + 16 * i), y[i]);
    }
    float* out = static_cast<float*>(op.y.data) + t * op.y.stride[0] + c;
    for (int i = 0; i < N; ++i) {
      if (N == 1) {
        V::store_part(out, y[i], last);
      } else {
        V::store(out + 16 * i, y[i]);
      }
    }
  }
};

}  // namespace qiao::cpu
