// Activations and their slopes, shared by gated_activation and the products' last steps.
#pragma once

#include "backend/cuda/kernel.h"
#include "backend/ops/common.h"

namespace qiao::cuda {

inline constexpr float kRootHalf = 0.70710678f, kInverseRootTwoPi = 0.39894228f,
                       kTwiceRootTwoOverPi = 1.5957691f, kGeluCubic = 0.044715f;

// `soft_cap` is kSoftCap's alone.
template <Activation kKind>
__device__ inline float activated(float x, float soft_cap = 0) {
  if constexpr (kKind == Activation::kNone) {
    return x;
  } else if constexpr (kKind == Activation::kSilu) {
    return divide_flushed(x, 1.0f + expf(-x));
  } else if constexpr (kKind == Activation::kGelu) {
    return x * 0.5f * (1.0f + erff(x * kRootHalf));
  } else if constexpr (kKind == Activation::kGeluTanh) {
    // 0.5 (1 + tanh(z)) is the sigmoid of 2 z.
    return divide_flushed(x, 1.0f + expf(-kTwiceRootTwoOverPi * x * fmaf(kGeluCubic, x * x, 1.0f)));
  } else {
    return soft_cap * tanhf(x / soft_cap);
  }
}

// Of four elements of gate and of up.
template <Activation kKind>
__device__ inline float4 gated(float4 gate, float4 up) {
  return make_float4(activated<kKind>(gate.x) * up.x, activated<kKind>(gate.y) * up.y,
                     activated<kKind>(gate.z) * up.z, activated<kKind>(gate.w) * up.w);
}

struct SigmoidSlope {
  float value, slope;
};
// 1 / (1 + exp(-x)) and its slope, both to a relative error: of exp(-|x|), which never overflows.
__device__ inline SigmoidSlope sigmoid_slope(float x) {
  const float e = expf(-fabsf(x)), d = 1.0f / (1.0f + e), rest = e * d;
  return {x < 0 ? rest : d, rest * d};
}

// An activation's value and slope.
template <Activation kKind>
__device__ inline SigmoidSlope activated_slope(float x) {
  if constexpr (kKind == Activation::kSilu) {
    const SigmoidSlope s = sigmoid_slope(x);
    return {x * s.value, fmaf(x, s.slope, s.value)};
  } else if constexpr (kKind == Activation::kGelu) {
    const float phi = 0.5f * (1.0f + erff(x * kRootHalf));
    return {x * phi, fmaf(x, kInverseRootTwoPi * expf(x * x * -0.5f), phi)};
  } else {
    static_assert(kKind == Activation::kGeluTanh);
    // Beyond 16 it is 0 or 1 and its slope 0.
    const float near = fmaxf(-16.0f, fminf(16.0f, x)), square = near * near;
    const SigmoidSlope s = sigmoid_slope(kTwiceRootTwoOverPi * near * fmaf(kGeluCubic, square, 1.0f));
    const float inner = kTwiceRootTwoOverPi * fmaf(3 * kGeluCubic, square, 1.0f);
    return {x * s.value, fmaf(near * s.slope, inner, s.value)};
  }
}

}  // namespace qiao::cuda
