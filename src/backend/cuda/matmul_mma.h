// The tensor cores' products (matmul.h), for BF16, FP8 and every block format; with few tokens matmul_few.h.
// The weight is the M operand: 16 rows by a step of K are a warp's A, from shared memory as they lie in
// device memory (weight_layout.h: one 16-byte load a lane, no bank conflict); tokens are N, eight a tile,
// read by ldmatrix from rows that are padded apart. Plan: a block has 128 rows by 64 tokens. Warps own rows,
// so each brings its own part of the weight, by cp.async, kStages stages in flight; x comes prepared, staged
// by all threads beside the weight, a barrier a stage. The limit is the tensor cores for BF16, and for block
// formats the multiply-adds that follow each integer product. A thread keeps the sums of the segment and
// those of the segments before: 183 registers for BF16 (two blocks of 4 warps a multiprocessor), about 155
// for block formats (one of 8: held to 128 they spill). Measured: docs/h200.md.
#pragma once

#include "backend/cuda/matmul_f8.h"

namespace qiao::cuda {

// BF16: steps of 16. kStage: columns of a stage, kFewStage with few tokens; kTogether: warps that then walk
// together.
struct Bf16Product {
  static constexpr bool kQuants = false, kF8 = false;
  static constexpr int kTogether = 1;
  static constexpr int kMetaBytes = 0, kGroup = 32;  // with few tokens, of so many columns
  static constexpr int kFewStage = 64, kStage = 64, kStages = 4;
  static constexpr int kWarps = 4, kRowTiles = 2;  // of a warp
  static constexpr int kStep = 16, kElementBytes = 2;
  static constexpr int kUnit = 16, kUnitBytes = 512;
};

// A block format: steps of 32.
template <DType kType>
struct QuantProduct {
  using F = Format<kType>;
  static constexpr bool kQuants = true, kF8 = false;
  static constexpr int kTogether = 1;
  static constexpr int kMetaBytes = F::kHalves ? 16 : 8, kGroup = 32;
  static constexpr int kFewStage = F::kTileBytes * (256 / F::kElements) > 4096 ? 128 : 256;
  static constexpr int kStage = 256, kStages = 2;
  static constexpr int kWarps = 8, kRowTiles = 1;
  static constexpr int kStep = 32, kElementBytes = 1;
  static constexpr int kUnit = F::kElements, kUnitBytes = F::kTileBytes;
};

// F8_128: steps of 32, a stage for each of its blocks.
struct F8Product {
  using F = Format<DType::kF8_128>;
  static constexpr bool kQuants = false, kF8 = true;
  static constexpr int kTogether = 1;
  static constexpr int kMetaBytes = 4, kGroup = 128;
  static constexpr int kFewStage = 128, kStage = 128, kStages = 3;
  static constexpr int kWarps = 8, kRowTiles = 1;
  static constexpr int kStep = 32, kElementBytes = 1;
  static constexpr int kUnit = F::kElements, kUnitBytes = F::kTileBytes;
};

// The same with few tokens on Hopper, by wgmma of E4M3: the four warps of a warpgroup.
struct F8WgmmaProduct : F8Product {
  static constexpr int kTogether = 4;
};

// The shapes of a block, and where things lie in its shared memory.
template <class P>
struct MmaShape {
  static constexpr int kTiles = kManyTokens / 8;
  static constexpr int kRowTiles = P::kRowTiles, kStage = P::kStage, kStages = P::kStages;
  static constexpr int kThreads = 32 * P::kWarps;
  static constexpr int kRowTileBytes = kStage / P::kUnit * P::kUnitBytes;
  static constexpr int kWarpStageBytes = kRowTiles * kRowTileBytes;
  static constexpr int kWeightBytes = P::kWarps * kStages * kWarpStageBytes;
  static constexpr int kXRow = kStage * P::kElementBytes + 16;
  static constexpr int kXStageBytes = kManyTokens * kXRow;
  static constexpr int kMetaStageBytes =
      P::kQuants || P::kF8 ? kManyTokens * (kStage / P::kGroup) * static_cast<int>(sizeof(ActivationMeta))
                           : 0;
  static constexpr size_t kSharedBytes = kWeightBytes + kStages * (kXStageBytes + kMetaStageBytes);
  static_assert(kWeightBytes % 128 == 0 && kXStageBytes % 16 == 0 &&
                P::kWarps * kRowTiles * kTileRows == kManyRows);
};

template <class P>
struct MmaBlock {
  using S = MmaShape<P>;
  const MatmulArguments& op;
  TokenTile tile;
  const uint8_t* weight;  // of the tile's expert
  int64_t row_tile;       // this warp's first
  int warp, lane;
  uint8_t* shared;

  __device__ bool has_rows(int rt) const { return (row_tile + rt) * kTileRows < op.end_row; }
  __device__ uint8_t* weight_stage(int slot) const {
    return shared + (warp * S::kStages + slot) * S::kWarpStageBytes;
  }
  __device__ uint8_t* x_stage(int slot) const { return shared + S::kWeightBytes + slot * S::kXStageBytes; }
  // [group][token]
  __device__ ActivationMeta* meta_at(int slot) const {
    return reinterpret_cast<ActivationMeta*>(shared + S::kWeightBytes + S::kStages * S::kXStageBytes +
                                             slot * S::kMetaStageBytes);
  }

  // Columns k to k + kStage of the weight and of x on their way; zeros beyond K.
  __device__ void bring(int64_t k, int slot) const {
    uint8_t* to = weight_stage(slot);
    const int64_t unit = k / P::kUnit, units = op.weight.units - unit;
    const int left = static_cast<int>(units < S::kStage / P::kUnit ? units : S::kStage / P::kUnit);
    const int bytes = left * P::kUnitBytes;
#pragma unroll
    for (int rt = 0; rt < S::kRowTiles; ++rt) {
      if (!has_rows(rt)) continue;
      const uint8_t* from = weight + ((row_tile + rt) * op.weight.units + unit) * P::kUnitBytes;
      for (int at = lane * 16; at < bytes; at += 512)
        copy_async<16>(to + rt * S::kRowTileBytes + at, from + at);
    }
    constexpr int kPieces = S::kStage * P::kElementBytes / 16;
    const int64_t row_bytes = op.prepared_columns * P::kElementBytes;
    const uint8_t* x = op.prepared + tile.first * row_bytes + k * P::kElementBytes;
    uint8_t* x_to = x_stage(slot);
    for (int i = static_cast<int>(threadIdx.x); i < tile.count * kPieces; i += S::kThreads) {
      const int token = i / kPieces, piece = i % kPieces;
      copy_async<16>(x_to + token * S::kXRow + piece * 16, x + token * row_bytes + piece * 16);
    }
    if constexpr (P::kQuants || P::kF8) {
      constexpr int kGroups = S::kStage / P::kGroup;
      const int64_t row_groups = op.prepared_columns / P::kGroup;
      const ActivationMeta* meta = op.meta + tile.first * row_groups + k / P::kGroup;
      ActivationMeta* meta_to = meta_at(slot);
      for (int i = static_cast<int>(threadIdx.x); i < tile.count * kGroups; i += S::kThreads) {
        const int token = i / kGroups, group = i % kGroups;
        copy_async<8>(meta_to + group * kManyTokens + token, meta + token * row_groups + group);
      }
    }
  }
};

// B of one step for token tiles t and t + 1: rows of x that are `row_bytes` apart, from `x` on.
__device__ inline void load_tokens(const uint8_t* x, int row_bytes, int t, int lane, uint32_t (&b)[4]) {
  load_matrices(b, x + (8 * t + lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * 16);
}

// A group of 32 of 16 rows with 8 tokens, added to their sums.
template <class F>
__device__ inline void add_group(const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 const GroupScales (&scales)[2], const ActivationMeta (&meta)[2],
                                 float* sums) {
  int products[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
  if constexpr (F::kHalves) {  // the sums of 16 apart
    const uint32_t first[4] = {a[0], a[1], 0, 0}, rest[4] = {0, 0, a[2], a[3]};
    multiply_add_s8(products, first, b);
    multiply_add_s8(high, rest, b);
  } else {
    multiply_add_s8(products, a, b);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const GroupScales& s = scales[i / 2];
    const ActivationMeta& m = meta[i % 2];
    const int whole = F::kHalves ? s.low * products[i] + s.high * high[i] : products[i];
    sums[i] = fmaf(m.scale * s.scale, static_cast<float>(whole), sums[i]);
    if constexpr (F::kMinimum) {
      const int low = low_sum(m.sums), rest = high_sum(m.sums);
      const int of_x = F::kHalves ? s.minimum_low * low + s.minimum_high * rest : low + rest;
      sums[i] = fmaf(m.scale * static_cast<float>(of_x), s.minimum, sums[i]);
    }
  }
}

template <class P>
__global__ void __launch_bounds__(MmaShape<P>::kThreads, MmaShape<P>::kThreads > 128 ? 1 : 2)
    matmul_mma(MatmulArguments op) {
  begin_kernel();
  using S = MmaShape<P>;
  constexpr int kSums = S::kRowTiles * S::kTiles * 4;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const TokenTile tile =
      token_tile(op.counts, op.experts, op.tokens, blockIdx.x % op.token_tiles, kManyTokens);
  if (tile.count == 0) return;
  const int64_t row_tile =
      op.first_row / kTileRows + blockIdx.x / op.token_tiles * (kManyRows / kTileRows) + warp * S::kRowTiles;
  const MmaBlock<P> block{op,
                          tile,
                          op.weight.tiles + tile.expert * op.expert_bytes,
                          row_tile,
                          warp,
                          lane,
                          shared_memory<uint8_t>()};
  const int64_t begin = op.split ? blockIdx.y * op.segment : 0;
  const int64_t end =
      op.split && begin + op.segment < op.weight.columns ? begin + op.segment : op.weight.columns;
  const int count = static_cast<int>(ceil_div(end - begin, S::kStage));
  const int per_segment = static_cast<int>(op.segment / S::kStage);
  float sums[kSums] = {}, total[kSums] = {};
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (i < count) block.bring(begin + i * S::kStage, i);
    copy_async_commit();
  }
  for (int stage = 0; stage < count; ++stage) {
    const int64_t k = begin + int64_t{stage} * S::kStage;
    copy_async_wait<S::kStages - 2>();
    __syncthreads();
    const int next = stage + S::kStages - 1;
    if (next < count) block.bring(begin + int64_t{next} * S::kStage, next % S::kStages);
    copy_async_commit();

    const int slot = stage % S::kStages;
    const uint8_t* w = block.weight_stage(slot);
    const uint8_t* x = block.x_stage(slot);
    const int64_t left = end - k;
    const int steps = static_cast<int>(left < S::kStage ? ceil_div(left, P::kStep) : S::kStage / P::kStep);
    if constexpr (P::kF8) {
      if (block.has_rows(0))
        add_f8_block<S::kTiles>(w, x, S::kXRow, block.meta_at(slot), tile.count, lane, sums);
    } else if (block.has_rows(0)) {
#pragma unroll 2
      for (int step = 0; step < steps; ++step) {
        const uint8_t* x_step = x + step * (P::kStep * P::kElementBytes);
        if constexpr (P::kQuants) {
          using F = typename P::F;
          const uint8_t* t = w + step / F::kGroups * F::kTileBytes;
          const int group = step % F::kGroups;
          uint32_t a[4];
          signed_quants<F>(t, lane, group, a);
          const GroupScales scales[2] = {F::scales(t, lane / 4, group), F::scales(t, lane / 4 + 8, group)};
          const ActivationMeta* metas = block.meta_at(slot) + step * kManyTokens + lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < S::kTiles; n += 2) {
            if (n * 8 >= tile.count) break;
            uint32_t b[4];
            load_tokens(x_step, S::kXRow, n, lane, b);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const uint4 two = *reinterpret_cast<const uint4*>(metas + 8 * (n + i));
              const ActivationMeta meta[2] = {{__uint_as_float(two.x), static_cast<int>(two.y)},
                                              {__uint_as_float(two.z), static_cast<int>(two.w)}};
              const uint32_t own[2] = {b[2 * i], b[2 * i + 1]};
              add_group<F>(a, own, scales, meta, sums + 4 * (n + i));
            }
          }
        } else {
          uint32_t a[S::kRowTiles][4];
#pragma unroll
          for (int rt = 0; rt < S::kRowTiles; ++rt) {
            const uint4 four = tile::four(w + rt * S::kRowTileBytes + step * 512 + lane * 16);
            a[rt][0] = four.x, a[rt][1] = four.y, a[rt][2] = four.z, a[rt][3] = four.w;
          }
#pragma unroll
          for (int n = 0; n < S::kTiles; n += 2) {
            if (n * 8 >= tile.count) break;
            uint32_t b[4];
            load_tokens(x_step, S::kXRow, n, lane, b);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const uint32_t own[2] = {b[2 * i], b[2 * i + 1]};
#pragma unroll
              for (int rt = 0; rt < S::kRowTiles; ++rt) {
                auto& of_tile = *reinterpret_cast<float(*)[4]>(sums + (rt * S::kTiles + n + i) * 4);
                multiply_add_bf16(of_tile, a[rt], own);
              }
            }
          }
        }
      }
    }
    if (stage % per_segment == per_segment - 1 || stage == count - 1) {
      const bool is_first = stage < per_segment;
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i] = is_first ? sums[i] : total[i] + sums[i], sums[i] = 0;
    }
  }
  copy_async_wait<0>();
  if (op.split && !add_segments<S::kThreads>(op, total)) return;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int64_t row = (row_tile + i / (4 * S::kTiles)) * kTileRows + lane / 4 + i % 4 / 2 * 8;
    const int token = i / 4 % S::kTiles * 8 + lane % 4 * 2 + i % 2;
    if (row >= op.first_row && row < op.end_row && token < tile.count) {
      finish_sum(op, tile.first + token, row, total[i]);
    }
  }
}

template <class P>
void launch_many(const Stream& stream, const MatmulArguments& op) {
  using S = MmaShape<P>;
  launch("linear", stream, matmul_mma<P>, matmul_grid(op), S::kThreads, S::kSharedBytes, op);
}

}  // namespace qiao::cuda
