// Plan: 64 columns of y stay in registers while the picks' rows are added in order, and so on the way back of
// permute; each byte of the rows is read once, so the limit is memory. The way back of combine reads and
// writes a pick's rows once, for the product and the scaled copy together.
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

  static void permute_backward(const MoePermuteBackward& op, int64_t begin, int64_t end) {
    const int64_t columns = op.dx.shape[1];
    for (int64_t t = begin; t < end; ++t) {
      int64_t c = 0;
      for (; c + 64 <= columns; c += 64) add_rows<4>(op, t, c, 16);
      for (; c < columns; c += 16) add_rows<1>(op, t, c, columns - c < 16 ? columns - c : 16);
    }
  }

  static void combine_backward(const MoeCombineBackward& op, int64_t begin, int64_t end) {
    const int64_t columns = op.dy.shape[1];
    for (int64_t t = begin; t < end; ++t) {
      const float* dy = static_cast<float*>(op.dy.data) + t * op.dy.stride[0];
      for (int64_t j = 0; j < op.places.shape[1]; ++j) {
        const int64_t place =
            static_cast<int32_t*>(op.places.data)[t * op.places.stride[0] + j * op.places.stride[1]];
        const float* row = static_cast<float*>(op.sorted.data) + place * op.sorted.stride[0];
        float* out = static_cast<float*>(op.dsorted.data) + place * op.dsorted.stride[0];
        const F weight =
            V::set(static_cast<float*>(op.weights.data)[t * op.weights.stride[0] + j * op.weights.stride[1]]);
        F dots = V::set(0.0f);
        for (int64_t c = 0; c < columns; c += 16) {
          const int64_t n = columns - c < 16 ? columns - c : 16;
          const F d = V::load_part(dy + c, n);
          dots = V::fma(d, V::load_part(row + c, n), dots);
          V::store_part(out + c, V::mul(weight, d), n);
        }
        static_cast<float*>(op.dweights.data)[t * op.dweights.stride[0] + j * op.dweights.stride[1]] =
            V::sum(dots);
      }
    }
  }

 private:
  template <int N>
  static void add_rows(const MoePermuteBackward& op, int64_t t, int64_t c, int64_t last) {
    const auto load = [last](const float* p) { return N == 1 ? V::load_part(p, last) : V::load(p); };
    float* out = static_cast<float*>(op.dx.data) + t * op.dx.stride[0] + c;
    F x[N];
    for (int i = 0; i < N; ++i) x[i] = op.add_dx ? load(out + 16 * i) : V::set(0.0f);
    for (int64_t j = 0; j < op.places.shape[1]; ++j) {
      const int64_t place =
          static_cast<int32_t*>(op.places.data)[t * op.places.stride[0] + j * op.places.stride[1]];
      const float* row = static_cast<float*>(op.dsorted.data) + place * op.dsorted.stride[0] + c;
      for (int i = 0; i < N; ++i) x[i] = V::add(x[i], load(row + 16 * i));
    }
    for (int i = 0; i < N; ++i) {
      if (N == 1) {
        V::store_part(out, x[i], last);
      } else {
        V::store(out + 16 * i, x[i]);
      }
    }
  }

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

template <class V>
constexpr MoeKernels moe_kernels() {
  return {MoeKernel<V>::combine, MoeKernel<V>::permute_backward, MoeKernel<V>::combine_backward};
}

}  // namespace qiao::cpu
