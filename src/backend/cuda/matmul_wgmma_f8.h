// FP8 products of many tokens on Hopper (matmul.h), by wgmma of E4M3 (matmul_f8.h). As matmul_wgmma.h, but
// for what follows. A stage is a block of F8_128: 128 columns of the tokens, a row of 128 bytes each, with
// their scales, and eight tiles of 16 rows with theirs, whose numbers are A's registers as they lie. Four
// products of 32 make a block's sums, which a thread then adds to those of the segment, times both scales,
// while the other warpgroup's products are made. Those two are 64 registers each where a tile has 128 tokens,
// 96 where it has 192; the sums of the segments before lie in shared memory (64 or 96 KB), a float a thread
// and sum, touched once a segment.
//
// The limit, of a tile of 128 x 192 and a block: the tensor cores take 768 cycles (4096 multiply-adds a
// cycle), a warpgroup's own half of them; in the other half it gives what follows a product, 300 instructions
// a warp, of which 192 are the sums'. A stage is 42 KB, 56 bytes a cycle, where the L2 cache gave BF16's
// tiles 36 to 39 (matmul_wgmma.h); shared memory reads 65 KB of a stage and takes its 42 KB, 142 bytes a
// cycle of 128. So the prediction: 66% of E4M3's peak; with 128 tokens (33 KB in 512 cycles) 58%. Up to that
// many are limited by the memory, as BF16's: a stage of 64 rows has as many bytes (matmul_wgmma_walk.h).
// Blocks that load a stage together (clusters) would be next. Not yet run on a device.
#pragma once

#include "backend/cuda/matmul_f8.h"
#include "backend/cuda/matmul_wgmma_tiles.h"

namespace qiao::cuda {

template <int kOfTokens>
struct WgmmaF8Shape {
  using F = Format<DType::kF8_128>;
  static constexpr int kTokens = kOfTokens, kGroups = wgmma_groups(kTokens), kRows = 64 * kGroups;
  static constexpr int kConsumers = 128 * kGroups, kThreads = kConsumers + 128;
  static constexpr int kConsumerWarps = kConsumers / 32;
  static constexpr bool kLine = kTokens <= kMostLineTokens;
  static constexpr int kStage = F::kElements, kSteps = kStage / 32;
  static constexpr int kUnit = F::kElements, kUnitBytes = F::kTileBytes, kTileBytes = kUnitBytes;
  static constexpr int kTokenBytes = kTokens * kStage;
  static constexpr int kScalesAt = kTokenBytes + kConsumerWarps * kTileBytes;
  static constexpr int kStageBytes = (kScalesAt + kTokens * 4 + 1023) / 1024 * 1024;
  static constexpr int kSums = kTokens / 2;
  static constexpr int kChunk = kTokens < 32 ? kTokens : 32, kChunkRow = 64 + 4;
  static constexpr int kChunkBytes = kChunk * kChunkRow * static_cast<int>(sizeof(float));
  // A warpgroup's sums of earlier segments, and its chunk in their place.
  static constexpr bool kSumsInShared = true, kAhead = kSums != 96;
  static constexpr int kRegisters = kSums == 96 ? 224 : 216;
  static constexpr int kBeforeBytes = 128 * kSums * static_cast<int>(sizeof(float));
  static constexpr int kGroupBytes = kChunkBytes < kBeforeBytes ? kBeforeBytes : kChunkBytes;
  static constexpr int kRoom = (227 * 1024 - kGroups * kGroupBytes - 1024) / kStageBytes;
  static constexpr int kStages = kRoom < 20 ? kRoom : 20;
  static constexpr int kChunksAt = kStages * kStageBytes, kArrivalsAt = kChunksAt + kGroups * kGroupBytes;
  static constexpr int kSharedBytes = kArrivalsAt + 2 * kStages * 8;
  static_assert(kStages >= 3 && kRows == kConsumerWarps * kTileRows && kSharedBytes <= 227 * 1024);
};

// A of a stage's steps: this warp's tile.
template <class S>
__device__ inline void load_f8_weight(const WgmmaRing<S>& ring, uint32_t (&a)[S::kSteps][4]) {
  const uint8_t* tile = ring.weight() + threadIdx.x / 32 * S::kTileBytes;
#pragma unroll
  for (int step = 0; step < S::kSteps; ++step) {
    S::F::quants(tile, static_cast<int>(threadIdx.x % 32), step, a[step]);
  }
}

template <class S>
__device__ inline void use_f8_stages(const MatmulArguments& op, uint8_t* shared) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  WgmmaRing<S> ring{shared};
  float* before = sums_before<S>(shared);
  float block[S::kSums] = {}, sums[S::kSums];
  const auto per_segment = static_cast<int>(op.segment / S::kStage);
  for (WgmmaWalk<S> walk(op); walk.more(); walk.advance()) {
    const WgmmaWork work = walk.work();
    const WgmmaSegments segments = walk.segments_of(work), own = walk.segments_of(work, warp / 4);
    const auto stages = static_cast<int>((walk.end_of(segments) - walk.begin_of(segments)) / S::kStage);
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) sums[i] = 0;
    uint32_t a[S::kSteps][4], next[S::kSteps][4] = {};
    wait_arrivals(ring.full(), ring.parity);
    load_f8_weight(ring, a);
    int left = per_segment, segment = segments.first;
    for (int stage = 0; stage < stages; ++stage) {
      multiply_begin();
#pragma unroll
      for (int step = 0; step < S::kSteps; ++step) {
        multiply_async_e4m3(block, a[step], multiply_operand(ring.tokens(), step), step != 0);
      }
      multiply_commit();
      const uint8_t* tile = ring.weight() + warp * S::kTileBytes;
      const GroupScales of_rows[2] = {S::F::scales(tile, lane / 4, 0), S::F::scales(tile, lane / 4 + 8, 0)};
      const auto* of_x = reinterpret_cast<const float2*>(ring.tokens() + S::kScalesAt) + lane % 4;
      uint64_t* used = ring.empty();
      ring.advance();
      const auto take = [&](uint32_t(&to)[S::kSteps][4]) {
        if (stage + 1 == stages) return;
        wait_arrivals(ring.full(), ring.parity);
        load_f8_weight(ring, to);
      };
      if constexpr (S::kAhead) {
        take(next);
        multiply_wait_and_take(block, a, next);
      } else {
        multiply_wait_and_take(block, a, a);
      }
#pragma unroll
      for (int n = 0; n < S::kTokens / 8; ++n) {
        const float2 two = of_x[4 * n];
        add_f8_sums(*reinterpret_cast<float(*)[4]>(block + 4 * n), of_rows, two.x, two.y, sums + 4 * n);
      }
      __syncwarp();  // all lanes have read
      if (lane == 0) arrive(used);
      if constexpr (!S::kAhead) take(a);
      if (--left != 0 && stage + 1 != stages) continue;
      left = per_segment;
      // What is the other group's alone was made of what lay in shared memory, and is dropped.
      if (segment >= own.first && segment < own.end) {
        if (S::kLine && own.first > 0) {
          leave_sums<S>(op, walk.place_of(work, warp / 4), segment, work.tokens.count, sums);
        } else {
#pragma unroll
          for (int i = 0; i < S::kSums; ++i)
            before[i * 128] = segment == 0 ? sums[i] : before[i * 128] + sums[i];
        }
      }
#pragma unroll
      for (int i = 0; i < S::kSums; ++i) sums[i] = 0;
      ++segment;
    }
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) sums[i] = before[i * 128];
    end_work(walk, work, own, shared, sums);
  }
}

// The grid is as many blocks as run at once, or as there are items.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) matmul_wgmma_f8(MatmulArguments op) {
  let_next_begin();
  auto* shared = shared_memory<uint8_t>();
  open_ring<S>(shared);
  if (threadIdx.x >= S::kConsumers) {
    if constexpr (S::kGroups == 2) set_registers<kWgmmaRegisters - 2 * S::kRegisters, false>();
    bring_stages<S>(op, shared);
  } else {
    if constexpr (S::kGroups == 2) set_registers<S::kRegisters, true>();
    wait_for_previous();
    use_f8_stages<S>(op, shared);
  }
}

template <class S>
void launch_wgmma_f8(const Stream& stream, const MatmulArguments& op) {
  launch("linear", stream, matmul_wgmma_f8<S>, wgmma_blocks<S>(op, stream.multiprocessors()), S::kThreads,
         S::kSharedBytes, op);
}

}  // namespace qiao::cuda
