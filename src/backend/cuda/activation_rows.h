// Rows of x as the tensor cores take them: BF16, or quants of 8 bits in blocks of 32, or E4M3 in blocks of
// 128 (ops/common.h).
#pragma once

#include "backend/cuda/matmul.h"
#include "tensor/half.h"

namespace qiao::cuda {

__device__ inline uint32_t two_bf16(float low, float high) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
         uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(high))} << 16;
}

// The largest magnitude of what kLanes lanes that follow each other, from a multiple of them on, have; in
// each of them. As bits, which order as the magnitudes do, NaN above all, so that a NaN reaches the scale.
template <int kLanes>
__device__ inline unsigned largest_magnitude(const float (&x)[4]) {
  unsigned largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = max(largest, __float_as_uint(x[i]) & 0x7fffffffu);
#pragma unroll
  for (int lanes = 1; lanes < kLanes; lanes *= 2) {
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
  }
  return largest;
}

// Four of 32 elements; eight lanes that follow each other, from a multiple of 8 on, have the block, and all
// lanes of the warp call. The four quants of this lane; `meta` is the block's, in each lane.
__device__ inline uint32_t quantize_four(const float (&x)[4], ActivationMeta& meta) {
  const float most = __uint_as_float(largest_magnitude<8>(x));
  const bool zero = most < kQ8Smallest;
  const float inverse = zero ? 0.0f : 127.0f / most;
  uint32_t quants = 0;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int quant = __float2int_rn(x[i] * inverse);
    quants |= static_cast<uint32_t>(quant & 255) << (8 * i);
    sum += quant;
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  const int other = __shfl_xor_sync(kAllLanes, sum, 4);
  const bool first_half = threadIdx.x % 8 < 4;
  const int low = first_half ? sum : other, high = first_half ? other : sum;
  meta.scale = zero ? 0.0f : most / 127.0f;
  meta.sums = static_cast<int>(static_cast<unsigned>(high) << 16 | (static_cast<unsigned>(low) & 0xffffu));
  return quants;
}

// Of a block of E4M3, from its largest magnitude's bits: its scale and what its numbers are multiplied with.
struct F8Scale {
  float scale, inverse;
  __device__ explicit F8Scale(unsigned largest) {
    const float most = __uint_as_float(largest);
    const bool zero = most < kQ8Smallest, finite = largest < 0x7f800000u;
    inverse = zero ? 0.0f : kMostE4M3 / most;
    scale = zero ? 0.0f : finite ? most / kMostE4M3 : __uint_as_float(0x7fc00000u);
  }
};

// Four of 128 elements that the warp has, each lane four that follow each other: as numbers of E4M3. `scale`
// is the block's, in each lane.
__device__ inline uint32_t quantize_four_f8(const float (&x)[4], float& scale) {
  const F8Scale of_block(largest_magnitude<32>(x));
  scale = of_block.scale;
  uint32_t numbers = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) numbers |= uint32_t{e4m3_of(x[i] * of_block.inverse)} << (8 * i);
  return numbers;
}

__device__ inline int low_sum(int sums) { return static_cast<int16_t>(sums & 0xffff); }
__device__ inline int high_sum(int sums) { return sums >> 16; }

// x[k] to x[k + 3], zeros from `width` on.
__device__ inline void load_four_of(const float* x, int64_t k, int64_t width, float (&four)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = k + i < width ? x[k + i] : 0.0f;
}

}  // namespace qiao::cuda
