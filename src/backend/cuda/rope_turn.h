// The arithmetic of rotation, which rope.cu and rope_kv_write.cu share.
#pragma once

#include "backend/cuda/kernel.h"

namespace qiao::cuda {

struct Turn {
  float cosine, sine;
};

// turn: the sine's scale.
__device__ inline Turn turn_of(int position, float inverse_frequency, float scale, float turn) {
  const float angle = static_cast<float>(position) * inverse_frequency;
  float sine = 0, cosine = 0;
  sincosf(angle, &sine, &cosine);
  return {cosine * scale, sine * turn};
}

// One element of a pair from both; of the first the sine is negated.
__device__ inline float turned(float x, float other, float cosine, float sine) {
  return fmaf(x, cosine, other * sine);
}

}  // namespace qiao::cuda
