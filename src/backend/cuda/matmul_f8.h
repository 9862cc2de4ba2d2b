// A block of 128 columns of F8_128 with x in E4M3 (ops/common.h, kF8). A row's bits must not depend on how
// many stand beside it, so a device has one kind of product for all row counts. On Hopper it is wgmma of
// E4M3, which keeps 13 fraction bits of a sum: four steps of 32, then one fmaf with both scales (DeepSeek-V3
// Technical Report, section 3.3.2); with many tokens matmul_wgmma_f8.h. Before Hopper the tensor cores have
// no E4M3 or make it of F16, in which its numbers are exact: here what 32 columns are to mma.m16n8k32 are two
// of mma.m16n8k16 of F16, first of the first two of each four columns, then of the other two.
#pragma once

#include "backend/cuda/activation_rows.h"
#include "backend/cuda/weight_formats.h"

namespace qiao::cuda {

// A of 32 columns, as the two instructions take it.
struct F8Weight {
  uint32_t first[4], second[4];
  __device__ F8Weight(const uint8_t* tile, int step, int lane) {
    uint32_t numbers[4];
    Format<DType::kF8_128>::quants(tile, lane, step, numbers);
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack_e4m3(numbers[i], first[i], second[i]);
  }
};

__device__ inline void multiply_add_f8(float (&d)[4], const F8Weight& a, uint32_t b0, uint32_t b1) {
  uint32_t first[2], second[2];
  unpack_e4m3(b0, first[0], second[0]);
  unpack_e4m3(b1, first[1], second[1]);
  multiply_add_f16(d, a.first, first);
  multiply_add_f16(d, a.second, second);
}

// Adds a block's sums of a lane's rows and two tokens, times the scales, to `sums`.
__device__ inline void add_f8_sums(const float (&block)[4], const GroupScales (&of_rows)[2], float x0,
                                   float x1, float* sums) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    sums[i] = fmaf(block[i], (i % 2 == 0 ? x0 : x1) * of_rows[i / 2].scale, sums[i]);
}

// With few tokens (matmul_few.h). x: this lane's two words of a step, `step_bytes` from step to step; metas:
// the scales of its two tokens.
__device__ inline void add_few_f8_block(const uint8_t* tile, const uint8_t* x, int step_bytes,
                                        const uint8_t* metas, int lane, float (&sums)[4]) {
  using F = Format<DType::kF8_128>;
  float block[4] = {};
#pragma unroll
  for (int step = 0; step < F::kGroups; ++step) {
    const uint2 b = tile::pair(x + step * step_bytes);
    multiply_add_f8(block, F8Weight(tile, step, lane), b.x, b.y);
  }
  const GroupScales of_rows[2] = {F::scales(tile, lane / 4, 0), F::scales(tile, lane / 4 + 8, 0)};
  const uint2 of_x = tile::pair(metas);
  add_f8_sums(block, of_rows, __uint_as_float(of_x.x), __uint_as_float(of_x.y), sums);
}

// The same by the four warps of a warpgroup on Hopper, each with its own tile. x: the block's pieces of 16
// columns, [piece][token], two of them a step.
__device__ inline void add_few_e4m3_block(const uint8_t* tile, const uint8_t* x, int step_bytes,
                                          const uint8_t* metas, int lane, float (&sums)[4]) {
  using F = Format<DType::kF8_128>;
  uint32_t a[F::kGroups][4];
#pragma unroll
  for (int step = 0; step < F::kGroups; ++step) F::quants(tile, lane, step, a[step]);
  float block[4] = {};
  multiply_begin();
#pragma unroll
  for (int step = 0; step < F::kGroups; ++step) {
    const uint64_t b = multiply_operand_of_pieces(x + step * step_bytes, step_bytes / 2);
    multiply_async_e4m3(block, a[step], b, step != 0);
  }
  multiply_commit();
  const GroupScales of_rows[2] = {F::scales(tile, lane / 4, 0), F::scales(tile, lane / 4 + 8, 0)};
  const uint2 of_x = tile::pair(metas);
  multiply_wait_and_take(block, a, a);  // a is read until then
  add_f8_sums(block, of_rows, __uint_as_float(of_x.x), __uint_as_float(of_x.y), sums);
}

// With many (matmul_mma.h). x: kTiles times eight rows, `row_bytes` apart, of which `count` are used; metas:
// the tokens' scales.
template <int kTiles>
__device__ inline void add_f8_block(const uint8_t* tile, const uint8_t* x, int row_bytes,
                                    const ActivationMeta* metas, int count, int lane, float* sums) {
  using F = Format<DType::kF8_128>;
  float block[kTiles][4] = {};
#pragma unroll
  for (int step = 0; step < F::kGroups; ++step) {
    const F8Weight a(tile, step, lane);
    const uint8_t* row = x + step * 32 + (lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * 16;
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      if (n * 8 >= count) break;
      uint32_t b[4];
      load_matrices(b, row + 8 * n * row_bytes);
      multiply_add_f8(block[n], a, b[0], b[1]);
      multiply_add_f8(block[n + 1], a, b[2], b[3]);
    }
  }
  const GroupScales of_rows[2] = {F::scales(tile, lane / 4, 0), F::scales(tile, lane / 4 + 8, 0)};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const ActivationMeta* own = metas + 8 * n + lane % 4 * 2;
    add_f8_sums(block[n], of_rows, own[0].scale, own[1].scale, sums + 4 * n);
  }
}

}  // namespace qiao::cuda
