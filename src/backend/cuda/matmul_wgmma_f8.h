// FP8 products of many tokens on Hopper (matmul.h), by wgmma of F16, in which numbers of E4M3 are exact: the
// steps of matmul_f8.h, so the bits of mma.sync's kernels. As matmul_wgmma.h, but for what follows. A stage
// is a block of F8_128: 128 columns of 64 tokens, as F16 in the order of the steps, with the tokens' scales,
// and eight tiles of 16 rows with theirs. A warp unpacks its tile's numbers to A's registers while the
// products of the stage before are made. A thread keeps a block's sums, those of the segment and those of the
// segments before: 32 registers each, which is why a tile has no more tokens. The limit is the tensor cores
// with F16, whose rate is BF16's. Not yet run on a device.
#pragma once

#include "backend/cuda/matmul_f8.h"
#include "backend/cuda/matmul_wgmma.h"

namespace qiao::cuda {

struct WgmmaF8Shape {
  using F = Format<DType::kF8_128>;
  static constexpr int kTokens = 64, kRows = kManyRows;
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128, kConsumerWarps = kConsumers / 32;
  static constexpr int kStage = F::kElements, kSteps = kStage / 16;
  static constexpr int kTileBytes = F::kTileBytes;
  static constexpr int kHalfBytes = kTokens * 128;  // 64 columns of the tokens
  static constexpr int kTokenBytes = 2 * kHalfBytes;
  static constexpr int kScalesAt = kTokenBytes + kConsumerWarps * kTileBytes;
  static constexpr int kStageBytes = (kScalesAt + kTokens * 4 + 1023) / 1024 * 1024;
  static constexpr int kSums = kTokens / 2;
  static constexpr int kChunk = 32, kChunkRow = 64 + 4;
  static constexpr int kChunkBytes = kChunk * kChunkRow * static_cast<int>(sizeof(float));
  static constexpr int kStages = (227 * 1024 - 2 * kChunkBytes - 1024) / kStageBytes;
  static constexpr int kChunksAt = kStages * kStageBytes, kArrivalsAt = kChunksAt + 2 * kChunkBytes;
  static constexpr int kIsLastAt = kArrivalsAt + 2 * kStages * 8;
  static constexpr int kSharedBytes = kIsLastAt + 16;
  static_assert(kStages >= 4 && kRows == kConsumerWarps * kTileRows && kSharedBytes <= 227 * 1024);
};

// By each of four warps: a quarter of a stage's tokens and two of its tiles of 16 rows.
__device__ inline void bring_f8_stages(const MatmulArguments& op, uint8_t* shared) {
  using S = WgmmaF8Shape;
  constexpr int kQuarter = S::kTokens / 4;
  WgmmaRing<S> ring{shared};
  ring.parity = 1;  // at first each slot is empty
  const int warp = static_cast<int>(threadIdx.x / 32) - S::kConsumerWarps, items = wgmma_items(op);
  const int64_t row_tiles = ceil_div(op.end_row, kTileRows), tile_row_bytes = op.weight.units * S::kTileBytes;
  const int64_t padded_tokens = ceil_div(op.tokens, 8) * 8;
  const auto* scales = reinterpret_cast<const float*>(op.meta);
  wait_for_previous();
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const WgmmaWork work = wgmma_work<S::kTokens>(op, item);
    if (work.tokens.count == 0) continue;
    const int rows_left = (work.tokens.count + 7) / 8 * 8 - warp * kQuarter;
    const int rows = rows_left < 0 ? 0 : rows_left < kQuarter ? rows_left : kQuarter;
    const int64_t tiles_left = row_tiles - (work.row_tile + 2 * warp);
    const int tiles = tiles_left < 0 ? 0 : tiles_left < 2 ? static_cast<int>(tiles_left) : 2;
    const int64_t begin = work.begin / S::kStage, token = work.tokens.first + warp * kQuarter;
    const uint8_t* weight = op.weight.tiles + work.tokens.expert * op.expert_bytes +
                            (work.row_tile + 2 * warp) * tile_row_bytes + begin * S::kTileBytes;
    const auto token_bytes = static_cast<uint32_t>(rows * 128), scale_bytes = static_cast<uint32_t>(rows * 4);
    for (int64_t stage = begin; stage < work.end / S::kStage; ++stage, weight += S::kTileBytes) {
      wait_arrivals(ring.empty(), ring.parity);
      if (threadIdx.x % 32 == 0) {
        arrive_expecting(ring.full(),
                         2 * token_bytes + scale_bytes + static_cast<uint32_t>(tiles * S::kTileBytes));
      }
      __syncwarp();
      uint8_t* tiles_to = ring.weight() + 2 * warp * S::kTileBytes;
      for (int i = 0; i < tiles; ++i) {
        copy_bulk(tiles_to + i * S::kTileBytes, weight + i * tile_row_bytes, S::kTileBytes, ring.full());
      }
      if (rows > 0) {
        for (int half = 0; half < 2; ++half) {
          copy_bulk(ring.tokens() + half * S::kHalfBytes + warp * kQuarter * 128,
                    op.prepared + ((2 * stage + half) * padded_tokens + token) * 128, token_bytes,
                    ring.full());
        }
        copy_bulk(ring.tokens() + S::kScalesAt + warp * kQuarter * 4, scales + stage * padded_tokens + token,
                  scale_bytes, ring.full());
      }
      ring.advance();
    }
  }
}

// This warp's tile of a stage: numbers of a lane, as they lie there.
__device__ inline void load_f8_weight(const WgmmaRing<WgmmaF8Shape>& ring, uint32_t (&numbers)[4][4]) {
  using S = WgmmaF8Shape;
  const uint8_t* tile = ring.weight() + threadIdx.x / 32 * S::kTileBytes;
#pragma unroll
  for (int group = 0; group < S::F::kGroups; ++group) {
    S::F::quants(tile, static_cast<int>(threadIdx.x % 32), group, numbers[group]);
  }
}

// A of a stage's steps: matmul_f8.h's order.
__device__ inline void unpack_f8_weight(const uint32_t (&numbers)[4][4], uint32_t (&a)[8][4]) {
#pragma unroll
  for (int group = 0; group < 4; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack_e4m3(numbers[group][i], a[2 * group][i], a[2 * group + 1][i]);
  }
}

__device__ inline void use_f8_stages(const MatmulArguments& op, uint8_t* shared) {
  using S = WgmmaF8Shape;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  WgmmaRing<S> ring{shared};
  float block[S::kSums], sums[S::kSums], before[S::kSums];
  const int items = wgmma_items(op);
  const auto per_segment = static_cast<int>(op.segment / S::kStage);
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const WgmmaWork work = wgmma_work<S::kTokens>(op, item);
    if (work.tokens.count == 0) continue;
    const auto stages = static_cast<int>((work.end - work.begin) / S::kStage);
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) block[i] = sums[i] = 0;
    uint32_t a[S::kSteps][4], numbers[4][4] = {};
    wait_arrivals(ring.full(), ring.parity);
    load_f8_weight(ring, numbers);
    unpack_f8_weight(numbers, a);
    for (int stage = 0; stage < stages; ++stage) {
      multiply_begin();
#pragma unroll
      for (int step = 0; step < S::kSteps; ++step) {
        multiply_async_f16(block, a[step],
                           multiply_operand(ring.tokens() + step / 4 * S::kHalfBytes, step % 4));
      }
      multiply_commit();
      const uint8_t* tile = ring.weight() + warp * S::kTileBytes;
      const GroupScales of_rows[2] = {S::F::scales(tile, lane / 4, 0), S::F::scales(tile, lane / 4 + 8, 0)};
      const auto* of_x = reinterpret_cast<const float2*>(ring.tokens() + S::kScalesAt) + lane % 4;
      float2 x_scales[S::kTokens / 8];
#pragma unroll
      for (int n = 0; n < S::kTokens / 8; ++n) x_scales[n] = of_x[4 * n];
      uint64_t* used = ring.empty();
      ring.advance();
      if (stage + 1 < stages) {
        wait_arrivals(ring.full(), ring.parity);
        load_f8_weight(ring, numbers);
      }
      multiply_wait_and_take(block, a, a);  // a is read until then
      if (lane == 0) arrive(used);
#pragma unroll
      for (int n = 0; n < S::kTokens / 8; ++n) {
        auto& of_tile = *reinterpret_cast<float(*)[4]>(block + 4 * n);
        add_f8_sums(of_tile, of_rows, x_scales[n].x, x_scales[n].y, sums + 4 * n);
      }
#pragma unroll
      for (int i = 0; i < S::kSums; ++i) block[i] = 0;
      unpack_f8_weight(numbers, a);
      const bool is_last = stage + 1 == stages;
      if ((stage + 1) % per_segment != 0 && !is_last) continue;
      const bool is_first = stage < per_segment;
#pragma unroll
      for (int i = 0; i < S::kSums; ++i) {
        const float own = is_first ? sums[i] : before[i] + sums[i];
        before[i] = own, sums[i] = is_last ? own : 0;
      }
    }
    if (op.split && !add_wgmma_segments<S>(op, work, shared, sums)) continue;
    store_tile<S>(op, work, shared, sums);
  }
}

// The grid is as many blocks as run at once, or as there are items.
__global__ void __launch_bounds__(WgmmaF8Shape::kThreads, 1) matmul_wgmma_f8(MatmulArguments op) {
  let_next_begin();
  using S = WgmmaF8Shape;
  auto* shared = shared_memory<uint8_t>();
  open_ring<S>(shared);
  if (threadIdx.x >= S::kConsumers) {
    set_registers<72, false>();
    bring_f8_stages(op, shared);
  } else {
    set_registers<216, true>();
    wait_for_previous();
    use_f8_stages(op, shared);
  }
}

}  // namespace qiao::cuda
