// Plan: a run of frequencies' sines and cosines is made once a token, on the stack, and every head turns by
// it; making them costs as much as turning some four heads. The limit is L2: each element is read and written
// once.
#pragma once

#include "backend/cpu/rope_kernels.h"
#include "backend/cpu/vector_math.h"

namespace qiao::cpu {

template <class V>
struct RopeKernel {
  using F = typename V::F;
  static constexpr int64_t kRun = 64;  // frequencies at a time

  static void tokens(const Rope& op, int64_t begin, int64_t end) {
    const int64_t half = op.inverse_frequencies.shape[0];
    const float* frequencies = static_cast<const float*>(op.inverse_frequencies.data);
    for (int64_t t = begin; t < end; ++t) {
      const F position = V::set(static_cast<float>(static_cast<const int32_t*>(op.positions.data)[t]));
      for (int64_t i = 0; i < half; i += kRun) {
        const int64_t count = half - i < kRun ? half - i : kRun;
        float sine[kRun], cosine[kRun];
        for (int64_t j = 0; j < count; j += 16) {
          F s, c;
          const F angle =
              V::mul(position, V::load_part(frequencies + i + j, count - j < 16 ? count - j : 16));
          VectorMath<V>::sincos(angle, &s, &c);
          V::store(sine + j, V::mul(s, V::set(op.inverse ? -op.scale : op.scale)));
          V::store(cosine + j, V::mul(c, V::set(op.scale)));
        }
        if (op.layout == Rope::Layout::kHalf) {
          turn_halves(op.q, t, i, half, count, sine, cosine);
          if (op.k.rank != 0) turn_halves(op.k, t, i, half, count, sine, cosine);
        } else {
          float pair_sine[2 * kRun], pair_cosine[2 * kRun];
          for (int64_t j = 0; j < count; ++j) {
            pair_sine[2 * j] = -sine[j];
            pair_sine[2 * j + 1] = sine[j];
            pair_cosine[2 * j] = pair_cosine[2 * j + 1] = cosine[j];
          }
          turn_pairs(op.q, t, 2 * i, 2 * count, pair_sine, pair_cosine);
          if (op.k.rank != 0) turn_pairs(op.k, t, 2 * i, 2 * count, pair_sine, pair_cosine);
        }
      }
    }
  }

 private:
  static void turn_halves(const Tensor& x, int64_t t, int64_t first, int64_t half, int64_t count,
                          const float* sine, const float* cosine) {
    for (int64_t h = 0; h < x.shape[1]; ++h) {
      float* a = static_cast<float*>(x.data) + t * x.stride[0] + h * x.stride[1] + first;
      float* b = a + half;
      int64_t j = 0;
      for (; j + 16 <= count; j += 16) {
        const F s = V::load(sine + j), c = V::load(cosine + j), left = V::load(a + j), right = V::load(b + j);
        V::store(a + j, V::fnma(right, s, V::mul(left, c)));
        V::store(b + j, V::fma(right, c, V::mul(left, s)));
      }
      if (const int64_t rest = count - j; rest > 0) {
        const F s = V::load_part(sine + j, rest), c = V::load_part(cosine + j, rest);
        const F left = V::load_part(a + j, rest), right = V::load_part(b + j, rest);
        V::store_part(a + j, V::fnma(right, s, V::mul(left, c)), rest);
        V::store_part(b + j, V::fma(right, c, V::mul(left, s)), rest);
      }
    }
  }

  static void turn_pairs(const Tensor& x, int64_t t, int64_t first, int64_t count, const float* sine,
                         const float* cosine) {
    for (int64_t h = 0; h < x.shape[1]; ++h) {
      float* a = static_cast<float*>(x.data) + t * x.stride[0] + h * x.stride[1] + first;
      for (int64_t j = 0; j < count; j += 16) {
        const int64_t rest = count - j < 16 ? count - j : 16;
        const F s = V::load_part(sine + j, rest), c = V::load_part(cosine + j, rest);
        const F both = V::load_part(a + j, rest);
        V::store_part(a + j, V::fma(both, c, V::mul(V::swap_pairs(both), s)), rest);
      }
    }
  }
};

}  // namespace qiao::cpu
