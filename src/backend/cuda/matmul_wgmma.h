// The products of many tokens with BF16 weights on Hopper (matmul.h), by wgmma. The weight is the M operand
// and comes from registers: its tiles are wgmma's A as they lie in device memory (weight_layout.h). Tokens
// are N, from shared memory: matmul_wgmma.cu prepares them as the image of it, by stages of K, so that a
// stage of a block is one run of tokens and one for each 16 rows of the weight, for bulk copies. Plan: a
// block a multiprocessor, which walks tiles of 128 rows by 256 tokens (or 192, 128 or 64, where those fill
// the device better). One warpgroup brings stages, as far ahead as shared memory has room, across the ends of
// tiles; two warpgroups of 64 rows each load a stage's A while the products of the stage before are made. A
// thread keeps the segment's sums and those of the segments before, 64 registers each; with 192 tokens 96
// each, and there the next stage's A is not loaded ahead; with 256 they have 128, so there all of K is one
// segment. A tile's sums leave through shared memory, in rows of 64.
//
// Up to 128 tokens (n16, n32, n64, n128) are few: blocks have even shares of the weight, and the limit is the
// memory's bandwidth (matmul_wgmma_walk.h). 96 to 160 KB of the weight are on their way to a multiprocessor.
// With up to 16 tokens a tile is of 64 rows, and one warpgroup multiplies: it takes some 250 cycles for a
// stage, which comes in 445. n16 and n32 are not yet run on a device: that they add as n8 and n64 do is what
// conformance will tell.
//
// The limit of many is what the L2 cache gives: a stage of 64 columns keeps the tensor cores busy for 512
// cycles with 128 tokens, 768 with 192, 1024 with 256, and is 32, 40 or 48 KB: 64, 53 or 48 bytes a cycle.
// Measured were 598 TFLOP/s with 128 and 735 with 256 (docs/h200.md), 39 and 36 bytes. Prediction for 192:
// 690. A row's chain of steps is that of mma.sync's kernel: an instruction of 16 k for each.
#pragma once

#include "backend/cuda/matmul_wgmma_tiles.h"

namespace qiao::cuda {

// A block, and where things lie in its shared memory: [stages][sums on their way out][counts of arrivals].
template <int kOfTokens>
struct WgmmaShape {
  static constexpr int kTokens = kOfTokens, kGroups = wgmma_groups(kTokens), kRows = 64 * kGroups;
  static constexpr int kConsumers = 128 * kGroups, kThreads = kConsumers + 128;
  static constexpr int kConsumerWarps = kConsumers / 32;
  static constexpr bool kLine = kTokens <= kMostLineTokens;
  static constexpr int kStage = 64, kSteps = kStage / 16;  // of K
  static constexpr int kUnit = 16, kUnitBytes = 512, kTileBytes = kStage / kUnit * kUnitBytes;
  static constexpr int kScalesAt = 0;  // of the tokens, in a stage; 0: none
  static constexpr int kTokenBytes = kTokens * kStage * 2;
  static constexpr int kStageBytes = kTokenBytes + kConsumerWarps * kTileBytes;
  static constexpr int kSums = kTokens / 2;        // of a thread
  static constexpr bool kOneSegment = kSums > 96;  // is all that a block walks
  static constexpr bool kAhead = kSums != 96;      // a stage's A is loaded while the one before is multiplied
  static constexpr bool kSumsInShared = false;
  static constexpr int kRegisters = kSums == 96 ? 224 : 216;
  // A warpgroup's sums of some tokens: rows of 64, padded apart.
  static constexpr int kChunk = kTokens < 32 ? kTokens : 32, kChunkRow = 64 + 4;
  static constexpr int kChunkBytes = kChunk * kChunkRow * static_cast<int>(sizeof(float));
  static constexpr int kGroupBytes = kChunkBytes;
  static constexpr int kFixedBytes = kGroups * kGroupBytes + 1024;
  static constexpr int kRoom = (227 * 1024 - kFixedBytes) / kStageBytes;
  static constexpr int kStages = kRoom < 20 ? kRoom : 20;
  static constexpr int kChunksAt = kStages * kStageBytes, kArrivalsAt = kChunksAt + kGroups * kGroupBytes;
  static constexpr int kSharedBytes = kArrivalsAt + 2 * kStages * 8;
  static_assert(kTokenBytes % 1024 == 0 && kStageBytes % 1024 == 0 && kStages >= 4 &&
                kRows == kConsumerWarps * kTileRows && kSharedBytes <= 227 * 1024);
};

// A of a stage's steps.
template <class S>
__device__ inline void load_weight(const WgmmaRing<S>& ring, uint32_t (&a)[S::kSteps][4]) {
  const uint8_t* from = ring.weight() + threadIdx.x / 32 * S::kTileBytes + threadIdx.x % 32 * 16;
#pragma unroll
  for (int step = 0; step < S::kSteps; ++step) {
    const uint4 four = *reinterpret_cast<const uint4*>(from + step * 512);
    a[step][0] = four.x, a[step][1] = four.y, a[step][2] = four.z, a[step][3] = four.w;
  }
}

template <class S>
__device__ inline void use_stages(const MatmulArguments& op, uint8_t* shared) {
  const bool first_lane = threadIdx.x % 32 == 0;
  const auto group = static_cast<int>(threadIdx.x / 128);
  WgmmaRing<S> ring{shared};
  float sums[S::kSums], before[S::kOneSegment ? 1 : S::kSums];
  const auto per_segment = static_cast<int>(op.segment / S::kStage);
  for (WgmmaWalk<S> walk(op); walk.more(); walk.advance()) {
    const WgmmaWork work = walk.work();
    const WgmmaSegments segments = walk.segments_of(work), own = walk.segments_of(work, group);
    const auto length = static_cast<int>(walk.end_of(segments) - walk.begin_of(segments));
    const int whole = length / S::kStage, last_steps = (length % S::kStage + 15) / 16;
    int segment = segments.first;
    // What is the other group's alone was made of what lay in shared memory, and is dropped.
    const auto end_segment = [&] {
      if constexpr (!S::kOneSegment) {
        if (segment >= own.first && segment < own.end) {
          if (S::kLine && own.first > 0) {
            leave_sums<S>(op, walk.place_of(work, group), segment, work.tokens.count, sums);
          } else {
#pragma unroll
            for (int i = 0; i < S::kSums; ++i) before[i] = segment == 0 ? sums[i] : before[i] + sums[i];
          }
        }
#pragma unroll
        for (int i = 0; i < S::kSums; ++i) sums[i] = 0;
      }
      ++segment;
    };
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) sums[i] = 0;
    uint32_t a[S::kSteps][4], next[S::kSteps][4] = {};
    wait_arrivals(ring.full(), ring.parity);
    load_weight(ring, a);
    int left = per_segment;
    for (int stage = 0; stage < whole; ++stage) {
      multiply_begin();
#pragma unroll
      for (int step = 0; step < S::kSteps; ++step) {
        multiply_async(sums, a[step], multiply_operand(ring.tokens(), step));
      }
      multiply_commit();
      uint64_t* used = ring.empty();
      ring.advance();
      const bool more = stage + 1 < whole || last_steps != 0;
      const auto take = [&](uint32_t(&to)[S::kSteps][4]) {
        if (!more) return;
        wait_arrivals(ring.full(), ring.parity);
        load_weight(ring, to);
      };
      if constexpr (S::kAhead) {
        take(next);
        multiply_wait_and_take(sums, a, next);
        if (first_lane) arrive(used);
      } else {
        multiply_wait_and_take(sums, a, a);
        if (first_lane) arrive(used);
        take(a);
      }
      if (--left == 0 || !more) end_segment(), left = per_segment;
    }
    if (last_steps != 0) {
      // As many steps as K has: one more of zeros would turn a sum of -0 into 0.
#pragma unroll
      for (int step = 0; step < S::kSteps; ++step) {
        if (step < last_steps) {
          multiply_begin();
          multiply_async(sums, a[step], multiply_operand(ring.tokens(), step));
          multiply_commit();
          multiply_wait<0>(sums);
        }
      }
      if (first_lane) arrive(ring.empty());
      ring.advance();
      end_segment();
    }
    if constexpr (S::kOneSegment) {
      end_work(walk, work, own, shared, sums);
    } else {
      end_work(walk, work, own, shared, before);
    }
  }
}

// The grid is as many blocks as run at once, or as there are items.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) matmul_wgmma(MatmulArguments op) {
  let_next_begin();
  auto* shared = shared_memory<uint8_t>();
  open_ring<S>(shared);
  if (threadIdx.x >= S::kConsumers) {
    if constexpr (S::kGroups == 2) set_registers<kWgmmaRegisters - 2 * S::kRegisters, false>();
    bring_stages<S>(op, shared);
  } else {
    if constexpr (S::kGroups == 2) set_registers<S::kRegisters, true>();
    wait_for_previous();
    use_stages<S>(op, shared);
  }
}

template <class S>
void launch_wgmma(const Stream& stream, const MatmulArguments& op) {
  launch("linear", stream, matmul_wgmma<S>, wgmma_blocks<S>(op, stream.multiprocessors()), S::kThreads,
         S::kSharedBytes, op);
}

}  // namespace qiao::cuda
