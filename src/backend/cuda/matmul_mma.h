// The tensor cores' products (matmul.h), for BF16 and for every block format. The weight is the M operand: 16
// rows by a step of K are a warp's A, from shared memory as they lie in device memory (weight_layout.h: one
// 16-byte load a lane, no bank conflict); tokens are N, eight a tile, read by ldmatrix from rows that are
// padded apart. Plan: warps own rows, so each brings its own part of the weight: cp.async of 16 bytes,
// kStages stages in flight, waited for by the warp alone. With few tokens (8) a block of 4 warps has 64 rows,
// and rounds or quantizes x itself, a segment at a time, while the weight's first stages are on their way;
// the limit is the memory's bandwidth. With many (64) a block has 128 rows, and x comes prepared, staged by
// all threads beside the weight, a barrier a stage; the limit is the tensor cores for BF16, and for block
// formats the multiply-adds that follow each integer product. A thread keeps the sums of the segment and
// those of the segments before: with many tokens 183 registers for BF16 (two blocks of 4 warps a
// multiprocessor), about 155 for block formats (one of 8: held to 128 they spill); with few at most 80, where
// shared memory is what limits the blocks of a multiprocessor to two (BF16) to four. Not yet run on a device.
#pragma once

#include "backend/cuda/activation_rows.h"
#include "backend/cuda/weight_formats.h"

namespace qiao::cuda {

// BF16: steps of 16. kStage: columns of a stage.
struct Bf16Product {
  static constexpr bool kQuants = false;
  static constexpr int kFewStage = 128, kManyStage = 64, kFewStages = 4, kManyStages = 4;
  static constexpr int kManyWarps = 4, kRowTiles = 2;  // of a warp, with many tokens
  static constexpr int kStep = 16, kElementBytes = 2;
  static constexpr int kUnit = 16, kUnitBytes = 512;
};

// A block format: steps of 32.
template <DType kType>
struct QuantProduct {
  using F = Format<kType>;
  static constexpr bool kQuants = true;
  static constexpr int kFewStage = 256, kManyStage = 256, kFewStages = 4, kManyStages = 2;
  static constexpr int kManyWarps = 8, kRowTiles = 1;
  static constexpr int kStep = 32, kElementBytes = 1;
  static constexpr int kUnit = F::kElements, kUnitBytes = F::kTileBytes;
};

// The shapes of a block, and where things lie in its shared memory.
template <class P, bool kFew>
struct MmaShape {
  static constexpr int kTokens = kFew ? kFewTokens : kManyTokens;
  static constexpr int kTiles = kTokens / 8;
  static constexpr int kWarps = kFew ? kFewRows / kTileRows : P::kManyWarps;
  static constexpr int kRowTiles = kFew ? 1 : P::kRowTiles;
  static constexpr int kRows = kWarps * kRowTiles * kTileRows;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStage = kFew ? P::kFewStage : P::kManyStage;
  static constexpr int kStages = kFew ? P::kFewStages : P::kManyStages;
  static constexpr int kRowTileBytes = kStage / P::kUnit * P::kUnitBytes;
  static constexpr int kWarpStageBytes = kRowTiles * kRowTileBytes;
  static constexpr int kWeightBytes = kWarps * kStages * kWarpStageBytes;
  static constexpr int kXRow = kStage * P::kElementBytes + 16;  // many: of a stage
  static constexpr int kXStageBytes = kTokens * kXRow;
  static constexpr int kMetaStageBytes =
      P::kQuants ? kTokens * (kStage / 32) * static_cast<int>(sizeof(ActivationMeta)) : 0;
  static_assert(kWeightBytes % 128 == 0 && kXStageBytes % 16 == 0 && kRows == (kFew ? kFewRows : kManyRows));

  static size_t shared_bytes(int64_t segment) {
    if (!kFew) return kWeightBytes + kStages * (kXStageBytes + kMetaStageBytes);
    const auto columns = static_cast<size_t>(segment);
    return kWeightBytes + kTokens * (columns * P::kElementBytes + 16) +
           (P::kQuants ? kTokens * columns / 32 * sizeof(ActivationMeta) : 0);
  }
};

template <class P, bool kFew>
struct MmaBlock {
  using S = MmaShape<P, kFew>;
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
  __device__ uint8_t* x_segment() const { return shared + S::kWeightBytes; }
  __device__ int64_t x_segment_row() const { return op.segment * P::kElementBytes + 16; }
  // [group of 32][token]
  __device__ ActivationMeta* meta_at(int slot) const {
    uint8_t* after =
        kFew ? x_segment() + S::kTokens * x_segment_row()
             : shared + S::kWeightBytes + S::kStages * S::kXStageBytes + slot * S::kMetaStageBytes;
    return reinterpret_cast<ActivationMeta*>(after);
  }

  // Columns k to k + kStage of the weight, and of x where it comes by stages, on their way; zeros beyond K.
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
    if constexpr (!kFew) {
      constexpr int kPieces = S::kStage * P::kElementBytes / 16;
      const int64_t row_bytes = op.prepared_columns * P::kElementBytes;
      const uint8_t* x = op.prepared + tile.first * row_bytes + k * P::kElementBytes;
      uint8_t* x_to = x_stage(slot);
      for (int i = static_cast<int>(threadIdx.x); i < tile.count * kPieces; i += S::kThreads) {
        const int token = i / kPieces, piece = i % kPieces;
        copy_async<16>(x_to + token * S::kXRow + piece * 16, x + token * row_bytes + piece * 16);
      }
      if constexpr (P::kQuants) {
        constexpr int kGroups = S::kStage / 32;
        const ActivationMeta* meta = op.meta + tile.first * (op.prepared_columns / 32) + k / 32;
        ActivationMeta* meta_to = meta_at(slot);
        for (int i = static_cast<int>(threadIdx.x); i < tile.count * kGroups; i += S::kThreads) {
          const int token = i / kGroups, group = i % kGroups;
          copy_async<8>(meta_to + group * S::kTokens + token,
                        meta + token * (op.prepared_columns / 32) + group);
        }
      }
    }
  }

  // The segment's columns of x from k on, rounded or quantized by this block.
  __device__ void prepare(int64_t k, int64_t end) const {
    const int columns = static_cast<int>((end - k + 127) / 128 * 128);
    uint8_t* to = x_segment();
    const int64_t row_bytes = x_segment_row();
    // Warps are inside or outside as a whole: a row is a multiple of 128 elements, 32 lanes of 4.
    for (int i = static_cast<int>(threadIdx.x); i < tile.count * (columns / 4); i += S::kThreads) {
      const int token = i / (columns / 4), at = i % (columns / 4) * 4;
      float four[4];
      load_four_of(op.x + (tile.first + token) * op.x_stride, k + at, op.weight.columns, four);
      if constexpr (P::kQuants) {
        ActivationMeta meta;
        *reinterpret_cast<uint32_t*>(to + token * row_bytes + at) = quantize_four(four, meta);
        if (threadIdx.x % 8 == 0) meta_at(0)[at / 32 * S::kTokens + token] = meta;
      } else {
        *reinterpret_cast<uint2*>(to + token * row_bytes + 2 * at) =
            make_uint2(two_bf16(four[0], four[1]), two_bf16(four[2], four[3]));
      }
    }
  }
};

// B of one step for token tiles t and t + 1 (few: t alone): rows of x that are `row_bytes` apart, from `x`
// on.
template <int kTiles>
__device__ inline void load_tokens(const uint8_t* x, int row_bytes, int t, int lane, uint32_t (&b)[4]) {
  if constexpr (kTiles == 1) {
    uint32_t two[2];
    load_matrices(two, x + lane % 8 * row_bytes + lane / 8 % 2 * 16);
    b[0] = two[0], b[1] = two[1];
  } else {
    load_matrices(b, x + (8 * t + lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * 16);
  }
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

template <class P, bool kFew>
__global__ void __launch_bounds__(MmaShape<P, kFew>::kThreads, MmaShape<P, kFew>::kThreads > 128 ? 1 : 2)
    matmul_mma(MatmulArguments op) {
  using S = MmaShape<P, kFew>;
  constexpr int kSums = S::kRowTiles * S::kTiles * 4;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const TokenTile tile =
      token_tile(op.counts, op.experts, op.tokens, blockIdx.x % op.token_tiles, S::kTokens);
  if (tile.count == 0) return;
  const int64_t row_tile =
      op.first_row / kTileRows + blockIdx.x / op.token_tiles * (S::kRows / kTileRows) + warp * S::kRowTiles;
  const MmaBlock<P, kFew> block{op,
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
    if constexpr (kFew) {
      if (stage % per_segment == 0) {
        __syncthreads();
        block.prepare(k, k + op.segment < end ? k + op.segment : end);
        __syncthreads();
      }
    }
    copy_async_wait<S::kStages - 2>();
    if constexpr (kFew) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    const int next = stage + S::kStages - 1;
    if (next < count) block.bring(begin + int64_t{next} * S::kStage, next % S::kStages);
    copy_async_commit();

    const int slot = stage % S::kStages;
    const uint8_t* w = block.weight_stage(slot);
    const int in_segment = stage % per_segment * S::kStage;
    const int row_bytes = kFew ? static_cast<int>(block.x_segment_row()) : S::kXRow;
    const uint8_t* x = kFew ? block.x_segment() + in_segment * P::kElementBytes : block.x_stage(slot);
    const int64_t left = end - k;
    const int steps = static_cast<int>(left < S::kStage ? ceil_div(left, P::kStep) : S::kStage / P::kStep);
    if (block.has_rows(0)) {
#pragma unroll 2
      for (int step = 0; step < steps; ++step) {
        const uint8_t* x_step = x + step * (P::kStep * P::kElementBytes);
        if constexpr (P::kQuants) {
          using F = typename P::F;
          const uint8_t* t = w + step / F::kGroups * F::kTileBytes;
          const int group = step % F::kGroups;
          uint32_t a[4];
          F::quants(t, lane, group, a);
          const GroupScales scales[2] = {F::scales(t, lane / 4, group), F::scales(t, lane / 4 + 8, group)};
          const ActivationMeta* metas =
              block.meta_at(slot) + ((kFew ? in_segment / 32 : 0) + step) * S::kTokens + lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < S::kTiles; n += 2) {
            if (n * 8 >= tile.count) break;
            uint32_t b[4];
            load_tokens<S::kTiles>(x_step, row_bytes, n, lane, b);
#pragma unroll
            for (int i = 0; i < (S::kTiles == 1 ? 1 : 2); ++i) {
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
            load_tokens<S::kTiles>(x_step, row_bytes, n, lane, b);
#pragma unroll
            for (int i = 0; i < (S::kTiles == 1 ? 1 : 2); ++i) {
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
void launch_mma(const Stream& stream, const MatmulArguments& op, bool few) {
  if (few) {
    using S = MmaShape<P, true>;
    launch("linear", stream, matmul_mma<P, true>, matmul_grid(op), S::kThreads, S::shared_bytes(op.segment),
           op);
  } else {
    using S = MmaShape<P, false>;
    launch("linear", stream, matmul_mma<P, false>, matmul_grid(op), S::kThreads, S::shared_bytes(op.segment),
           op);
  }
}

}  // namespace qiao::cuda
