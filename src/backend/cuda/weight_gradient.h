// dw += dy^T x of operands of 16 bits that are rounded as they lie, in rows of tokens: gradient_bf16.cu's,
// and of FP8 with experts (gradient_f8.cu), whose numbers are exact in BF16 and are added up by blocks of 128
// tokens.
//
// Plan: a block has 128 rows by 256 columns of dw (64 by 64 where there would be few of them, or little
// shared memory, and in FP8), a warp 64 by 64 of them (32 by 32) in registers; stages of 32 tokens come by
// cp.async, four of them (a row is padded by 16 bytes, so that ldmatrix meets no bank twice), and ldmatrix
// turns both operands as mma.m16n8k16 wants them: eight loads of 512 bytes for 32 products; a stage brings 24
// KB for a million multiply-adds. 195 registers, 84 in small blocks. The limit is the tensor cores. Not yet
// run on a device, so not timed.
#pragma once

#include "backend/cuda/gradient.h"
#include "backend/cuda/kernel.h"

namespace qiao::cuda {

inline int64_t up(int64_t bytes) { return ceil_div(bytes, 256) * 256; }
inline int64_t rounded_columns(int64_t columns) { return ceil_div(columns, 64) * 64; }

// A weight [experts, rows, columns] in memory that is another's.
inline CudaWeight weight_in(std::byte* memory, DType dtype, int64_t experts, int64_t rows, int64_t columns) {
  WeightSource source;
  source.experts = experts, source.columns = columns;
  source.parts.assign(static_cast<size_t>(experts), {dtype, rows, nullptr});
  const size_t bytes = CudaWeight::bytes_for(source);
  return CudaWeight(source, Buffer(nullptr, memory, bytes));
}

// A block's share of dw, and what lies in its shared memory: stages of [token][rows], [token][columns].
template <int kOfRows, int kOfColumns, int kOfWarp>
struct DwShape {
  static constexpr int kRows = kOfRows, kColumns = kOfColumns, kOwn = kOfWarp;  // kOwn: both ways, of a warp
  static constexpr int kAcross = kColumns / kOwn, kThreads = 32 * (kRows / kOwn) * kAcross;
  static constexpr int kDepth = 32, kStages = 4;
  static constexpr int kRowPitch = 2 * kRows + 16, kColumnPitch = 2 * kColumns + 16;
  static constexpr int kStageBytes = kDepth * (kRowPitch + kColumnPitch);
  static constexpr int kSharedBytes = kStages * kStageBytes;
};
using LargeDw = DwShape<128, 256, 64>;
using SmallDw = DwShape<64, 64, 32>;
inline constexpr int64_t kFewDwBlocks = 100;  // large ones, which leave a quarter of an H200 idle

struct DwArguments {
  const uint8_t *dy = nullptr, *x = nullptr;  // BF16 [tokens, pitch], zeros from rows and from columns on
  int64_t dy_pitch = 0, x_pitch = 0;          // bytes
  int64_t tokens = 0, rows = 0, columns = 0;
  const int32_t* counts = nullptr;
  float* dw = nullptr;
  // Of FP8, whose numbers are exact in BF16: the scales of 128 tokens from an expert's first on, a row for
  // each such block (they are counted over the experts), of as many columns as a row above has.
  const float *dy_scales = nullptr, *x_scales = nullptr;
};

// The blocks of 128 tokens of the experts before this one; by whole warps, the same in each lane.
__device__ inline int blocks_before(const int32_t* counts, int expert) {
  int before = 0;
  for (int e = static_cast<int>(threadIdx.x % 32); e < expert; e += 32)
    before += (counts[e] + kF8Block - 1) / kF8Block;
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) before += __shfl_xor_sync(kAllLanes, before, lanes);
  return before;
}

// 16 bytes of each of kDepth rows from `begin` on, those before `end`, from byte `at` on, those before
// `pitch`.
template <int kBytes, int kPitch, int kDepth, int kThreads>
__device__ inline void bring_rows(const uint8_t* rows, int64_t pitch, int64_t begin, int64_t end, int64_t at,
                                  uint8_t* shared) {
  constexpr int kPieces = kBytes / 16;
  static_assert(kDepth * kPieces % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kDepth * kPieces / kThreads; ++i) {
    const int item = i * kThreads + static_cast<int>(threadIdx.x), t = item / kPieces;
    const int piece = item % kPieces * 16;
    const bool there = begin + t < end && at + piece < pitch;
    copy_async<16>(shared + t * kPitch + piece, there ? rows + (begin + t) * pitch + at + piece : rows,
                   there);
  }
}

// A block's sums, times scales, to all of them; then the next block begins.
__device__ inline void add_block(float (&whole)[4], float (&sums)[4], const float* of_rows, float2 of_pair) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float of_row = of_rows[8 * half];
    whole[2 * half] = fmaf(sums[2 * half], of_row * of_pair.x, whole[2 * half]);
    whole[2 * half + 1] = fmaf(sums[2 * half + 1], of_row * of_pair.y, whole[2 * half + 1]);
    sums[2 * half] = sums[2 * half + 1] = 0;
  }
}

template <class S, bool kF8>
__global__ void __launch_bounds__(S::kThreads, S::kThreads == 256 ? 1 : 3)
    weight_gradient_half(const __grid_constant__ DwArguments op) {
  begin_kernel();
  const auto expert = static_cast<int>(blockIdx.y);
  const RowRange range = rows_of_expert(op.counts, op.tokens, expert);
  if (range.begin >= range.end) return;
  const int64_t across = ceil_div(op.columns, S::kColumns);
  const int64_t column = blockIdx.x % across * S::kColumns, row = blockIdx.x / across * S::kRows;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int own_row = warp / S::kAcross * S::kOwn, own_column = warp % S::kAcross * S::kOwn;
  auto* shared = shared_memory<uint8_t>();
  const int count = static_cast<int>(ceil_div(range.end - range.begin, S::kDepth));
  const auto bring = [&](int stage) {
    if (stage < count) {
      uint8_t* to = shared + stage % S::kStages * S::kStageBytes;
      const int64_t begin = range.begin + int64_t{stage} * S::kDepth;
      bring_rows<2 * S::kRows, S::kRowPitch, S::kDepth, S::kThreads>(op.dy, op.dy_pitch, begin, range.end,
                                                                     2 * row, to);
      bring_rows<2 * S::kColumns, S::kColumnPitch, S::kDepth, S::kThreads>(
          op.x, op.x_pitch, begin, range.end, 2 * column, to + S::kDepth * S::kRowPitch);
    }
    copy_async_commit();
  };
  constexpr int kHigh = S::kOwn / 16, kWide = S::kOwn / 8;  // tiles of a warp
  float sums[kHigh][kWide][4] = {};
  float whole[kF8 ? kHigh : 1][kF8 ? kWide : 1][4] = {};  // of FP8, whose sums are a block's without scales
  const int64_t first_block = kF8 && op.counts != nullptr ? blocks_before(op.counts, expert) : 0;
  for (int i = 0; i < S::kStages - 1; ++i) bring(i);
  for (int stage = 0; stage < count; ++stage) {
    copy_async_wait<S::kStages - 2>();
    __syncthreads();
    bring(stage + S::kStages - 1);
    const int64_t left = range.end - range.begin - int64_t{stage} * S::kDepth;
    const int steps = left < S::kDepth ? static_cast<int>(left + 15) / 16 : S::kDepth / 16;
    const uint8_t* dy = shared + stage % S::kStages * S::kStageBytes + 2 * own_row +
                        (lane % 8 + lane / 16 * 8) * S::kRowPitch + lane / 8 % 2 * 16;
    const uint8_t* x = shared + stage % S::kStages * S::kStageBytes + S::kDepth * S::kRowPitch +
                       2 * own_column + (lane % 8 + lane / 8 % 2 * 8) * S::kColumnPitch + lane / 16 * 16;
#pragma unroll
    for (int step = 0; step < S::kDepth / 16; ++step) {
      if (step >= steps) break;
      uint32_t a[kHigh][4];
#pragma unroll
      for (int m = 0; m < kHigh; ++m) {
        load_matrices_transposed(a[m], dy + step * 16 * S::kRowPitch + m * 32);
      }
#pragma unroll
      for (int n = 0; n < kWide; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, x + step * 16 * S::kColumnPitch + n * 16);
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < kHigh; ++m) {
          multiply_add_bf16(sums[m][n], a[m], first);
          multiply_add_bf16(sums[m][n + 1], a[m], second);
        }
      }
    }
    if constexpr (kF8) {
      constexpr int kOfBlock = static_cast<int>(kF8Block) / S::kDepth;
      if (stage % kOfBlock != kOfBlock - 1 && stage != count - 1) continue;
      const int64_t block = first_block + stage / kOfBlock;
      const float* of_rows = op.dy_scales + block * (op.dy_pitch / 2) + row + own_row + lane / 4;
      const float* of_columns = op.x_scales + block * (op.x_pitch / 2) + column + own_column + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < kWide; ++t) {
        const float2 of_pair = *reinterpret_cast<const float2*>(of_columns + t * 8);
#pragma unroll
        for (int m = 0; m < kHigh; ++m) add_block(whole[m][t], sums[m][t], of_rows + m * 16, of_pair);
      }
    }
  }
  copy_async_wait<0>();
  float* dw = op.dw + expert * op.rows * op.columns;
  const bool pairs = op.columns % 2 == 0 && (reinterpret_cast<uintptr_t>(dw) & 7) == 0;
#pragma unroll
  for (int m = 0; m < kHigh; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t n = row + own_row + m * 16 + half * 8 + lane / 4;
      if (n >= op.rows) continue;
#pragma unroll
      for (int t = 0; t < kWide; ++t) {
        const int64_t k = column + own_column + t * 8 + lane % 4 * 2;
        if (k >= op.columns) continue;
        float* at = dw + n * op.columns + k;
        const float(&sum)[4] = kF8 ? whole[kF8 ? m : 0][kF8 ? t : 0] : sums[m][t];
        const float low = sum[2 * half], high = sum[2 * half + 1];
        if (pairs) {
          const float2 was = *reinterpret_cast<const float2*>(at);
          *reinterpret_cast<float2*>(at) = make_float2(was.x + low, was.y + high);
        } else {
          at[0] += low;
          if (k + 1 < op.columns) at[1] += high;
        }
      }
    }
  }
}

template <class S, bool kF8>
void launch_dw(const Stream& stream, int experts, const DwArguments& op) {
  const auto blocks = static_cast<unsigned>(ceil_div(op.rows, S::kRows) * ceil_div(op.columns, S::kColumns));
  launch("linear_backward", stream, weight_gradient_half<S, kF8>,
         dim3(blocks, static_cast<unsigned>(experts)), S::kThreads, S::kSharedBytes, op);
}

}  // namespace qiao::cuda
