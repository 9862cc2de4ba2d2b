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

  // An activation's value and slope at once.
  struct Slope {
    F value, slope;
  };
  // 1 / (1 + exp(-x)) and its slope, both to a relative error: of exp(-|x|), which never overflows.
  static inline Slope sigmoid(F x) {
    const F e = Math::exp(V::sub(V::set(0.0f), V::abs(x)));
    const F d = V::div(V::set(1.0f), V::add(V::set(1.0f), e)), rest = V::mul(e, d);
    return {V::select(V::less(x, V::set(0.0f)), rest, d), V::mul(rest, d)};
  }
  static inline Slope silu_slope(F x) {
    const Slope s = sigmoid(x);
    return {V::mul(x, s.value), V::fma(x, s.slope, s.value)};
  }
  static inline Slope gelu_slope(F x) {
    const F phi = V::mul(V::set(0.5f), V::add(V::set(1.0f), Math::erf(V::mul(x, V::set(0.70710678f)))));
    const F density = V::mul(V::set(0.39894228f), Math::exp(V::mul(V::mul(x, x), V::set(-0.5f))));
    return {V::mul(x, phi), V::fma(x, density, phi)};
  }
  // 0.5 (1 + tanh(z)) is the sigmoid of 2 z. Beyond 16 it is 0 or 1 and its slope 0.
  static inline Slope gelu_tanh_slope(F x) {
    const F near = V::max(V::set(-16.0f), V::min(V::set(16.0f), x)), square = V::mul(near, near);
    const F twice = V::mul(V::mul(V::set(1.5957691f), near), V::fma(V::set(0.044715f), square, V::set(1.0f)));
    const F inner_slope = V::mul(V::set(1.5957691f), V::fma(V::set(0.134145f), square, V::set(1.0f)));
    const Slope s = sigmoid(twice);
    return {V::mul(x, s.value), V::fma(V::mul(near, s.slope), inner_slope, s.value)};
  }

  static void backward(const GatedActivationBackward& op, int64_t begin, int64_t end) {
    const int64_t columns = op.dy.shape[1];
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = static_cast<const float*>(op.x.data) + t * op.x.stride[0];
      const float* dy = static_cast<const float*>(op.dy.data) + t * op.dy.stride[0];
      float* dx = static_cast<float*>(op.dx.data) + t * op.dx.stride[0];
      if (op.activation == Activation::kSilu) {
        row_back(gate, dy, dx, columns, [](F x) { return silu_slope(x); });
      } else if (op.activation == Activation::kGelu) {
        row_back(gate, dy, dx, columns, [](F x) { return gelu_slope(x); });
      } else {
        row_back(gate, dy, dx, columns, [](F x) { return gelu_tanh_slope(x); });
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
  static void row_back(const float* gate, const float* dy, float* dx, int64_t columns, Function function) {
    for (int64_t f = 0; f < columns; f += 16) {
      const int64_t n = columns - f < 16 ? columns - f : 16;
      const F up = V::load_part(gate + columns + f, n), d = V::load_part(dy + f, n);
      const Slope a = function(V::load_part(gate + f, n));
      V::store_part(dx + f, V::mul(V::mul(d, a.slope), up), n);
      V::store_part(dx + columns + f, V::mul(d, a.value), n);
    }
  }

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
