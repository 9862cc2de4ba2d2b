// The arithmetic of RMSNorm, which add_rms_norm (norm.cu) and the ops that norm rows on their way share. A
// row's bits follow from its width alone: of row_warps() warps the thread in place i adds up the squares of
// the row's fours i, i + threads, i + 2 threads and so on; each warp folds pairwise, then its sums do
// (block_sum).
#pragma once

#include "backend/cuda/rows.h"
#include "backend/ops/norm.h"

namespace qiao::cuda {

// What is done to rows that are normed on their way (RmsNorm).
struct RowNorm {
  bool present = false;
  const float* gamma = nullptr;  // null: ones
  bool gamma_aligned = false;    // to 16 bytes
  float gamma_offset = 0, epsilon = 0;
};
inline RowNorm row_norm(const RmsNorm& norm) {
  const float* gamma = norm.present && norm.gamma.present() ? norm.gamma.as<float>() : nullptr;
  return {norm.present, gamma, aligned_16(gamma), norm.gamma_offset, norm.epsilon};
}
// What the registers of a row's threads hold: with more a norm before a product is a launch of its own.
inline constexpr int64_t kMostNormedWidth = 4 * kRowKept * 32 * kMostRowWarps;

// gamma + offset, or one and that.
__device__ inline float4 gain(bool ones, float4 gamma, float offset) {
  const float4 g = ones ? make_float4(1, 1, 1, 1) : gamma;
  return make_float4(g.x + offset, g.y + offset, g.z + offset, g.w + offset);
}
// From element `at` on.
__device__ inline float4 gain(const float* gamma, bool aligned, float offset, int64_t at, int64_t width) {
  const bool ones = gamma == nullptr;
  return gain(ones, ones ? make_float4(1, 1, 1, 1) : load_four(gamma, at, width, aligned), offset);
}

// kVectors: rows and gamma are whole vectors of 16 bytes at multiples of that.
template <bool kVectors>
__device__ float4 four_at(const float* row, int64_t at, int64_t width, bool aligned) {
  if (at >= width) return make_float4(0, 0, 0, 0);
  return kVectors ? *reinterpret_cast<const float4*>(row + at) : load_four(row, at, width, aligned);
}

// Of a row, from the sum of its squares.
__device__ inline float norm_factor(float squares, int64_t width, float epsilon) {
  return 1.0f / sqrtf(squares / static_cast<float>(width) + epsilon);
}
__device__ inline float4 normed(float4 h, float factor, float4 gain) {
  return make_float4(h.x * factor * gain.x, h.y * factor * gain.y, h.z * factor * gain.z,
                     h.w * factor * gain.w);
}

}  // namespace qiao::cuda
