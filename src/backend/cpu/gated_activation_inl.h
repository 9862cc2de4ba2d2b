// Plan: sixteen elements at a time, everything in registers; some 25 instructions an element vector, so rows
// in L2 go at arithmetic's speed and rows in memory at memory's.
#pragma once

#include "backend/cpu/gated_activation_kernels.h"
#include "backend/cpu/vector_math.h"

namespace qiao::cpu {

template <class V>
struct GatedActivationKernel {
  using F = typename V::F;
  using Math = VectorMath<V>;

  static inline F silu(F x) { return V::div(x, V::add(V::set(1.0f), Math::exp(V::sub(V::set(0.0f), x)))); }
  static inline F gelu(F x) {
    const F twice = V::add(V::set(1.0f), Math::erf(V::mul(x, V::set(0.70710678f))));
    return V::mul(V::mul(V::set(0.5f), x), twice);
  }
  static inline F gelu_tanh(F x) {
    const F cube = V::mul(V::mul(x, x), x);
    const F inner = V::mul(V::set(0.79788456f), V::fma(V::set(0.044715f), cube, x));
    return V::mul(V::mul(V::set(0.5f), x), V::add(V::set(1.0f), Math::tanh(inner)));
  }

  static void rows(const GatedActivation& op, int64_t begin, int64_t end) {
    const int64_t columns = op.y.shape[1];
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = static_cast<const float*>(op.x.data) + t * op.x.stride[0];
      float* y = static_cast<float*>(op.y.data) + t * op.y.stride[0];
      if (op.activation == Activation::kSilu) {
        row(gate, gate + columns, y, columns, [](F x) { return silu(x); });
      } else if (op.activation == Activation::kGelu) {
        row(gate, gate + columns, y, columns, [](F x) { return gelu(x); });
      } else {
        row(gate, gate + columns, y, columns, [](F x) { return gelu_tanh(x); });
      }
    }
  }

  static void activate(Activation activation, float* x, int64_t count) {
    if (activation == Activation::kSilu) {
      each(x, count, [](F f) { return silu(f); });
    } else if (activation == Activation::kGelu) {
      each(x, count, [](F f) { return gelu(f); });
    } else {
      each(x, count, [](F f) { return gelu_tanh(f); });
    }
  }

 private:
  template <typename Function>
  static void each(float* x, int64_t count, Function function) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) V::store(x + i, function(V::load(x + i)));
    if (const int64_t rest = count - i; rest > 0)
      V::store_part(x + i, function(V::load_part(x + i, rest)), rest);
  }

  template <typename Function>
  static void row(const float* gate, const float* up, float* y, int64_t columns, Function function) {
    int64_t f = 0;
    for (; f + 16 <= columns; f += 16) V::store(y + f, V::mul(function(V::load(gate + f)), V::load(up + f)));
    if (const int64_t rest = columns - f; rest > 0) {
      V::store_part(y + f, V::mul(function(V::load_part(gate + f, rest)), V::load_part(up + f, rest)), rest);
    }
  }
};

}  // namespace qiao::cpu
