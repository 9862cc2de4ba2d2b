// What the products by wgmma (matmul_wgmma.h, matmul_wgmma_f8.h) have in common beside a block's walk: how
// the warps that bring stages and those that multiply hand them on, and how sums leave. S is a block's shape,
// where things lie in its shared memory.
#pragma once

#include "backend/cuda/matmul_wgmma_walk.h"

namespace qiao::cuda {

// The stages in turn, as the warp that brings them and those that use them walk them.
template <class S>
struct WgmmaRing {
  uint8_t* shared;
  int slot = 0;
  uint32_t parity = 0;

  __device__ uint8_t* tokens() const { return shared + slot * S::kStageBytes; }
  __device__ uint8_t* weight() const { return tokens() + S::kTokenBytes; }
  __device__ uint64_t* full() const {
    return reinterpret_cast<uint64_t*>(shared + S::kArrivalsAt) + 2 * slot;
  }
  __device__ uint64_t* empty() const { return full() + 1; }
  __device__ void advance() {
    if (++slot == S::kStages) slot = 0, parity ^= 1;
  }
};

// By each of four warps: a quarter of a stage's tokens and of its tiles of 16 rows (one warp would take as
// long to ask for all as the tensor cores to use them). kEarly: the weight's part alone, of the block's first
// `stages` stages at most; gives how many there were, which then have their tokens to come.
template <class S, bool kEarly>
__device__ inline int bring(const MatmulArguments& op, uint8_t* shared, int stages) {
  constexpr int kQuarter = S::kTokens / 4, kRowBytes = 128;
  WgmmaRing<S> ring{shared};
  ring.parity = 1;  // at first each slot is empty
  const int warp = static_cast<int>(threadIdx.x / 32) - S::kConsumerWarps;
  const auto row_tiles = static_cast<int>(ceil_div(op.end_row, kTileRows));
  const auto padded_tokens = static_cast<int>(ceil_div(op.tokens, 8) * 8);
  int left = stages;
  for (WgmmaWalk<S> walk(op); walk.more(); walk.advance()) {
    const WgmmaWork work = walk.work();
    const WgmmaSegments segments = walk.segments_of(work);
    const WgmmaSegments own = walk.segments_of(work, warp * S::kGroups / 4);
    int k = static_cast<int>(walk.begin_of(segments));
    const auto end = static_cast<int>(walk.end_of(segments));
    const auto own_begin = static_cast<int>(walk.begin_of(own)), own_end = static_cast<int>(walk.end_of(own));
    const int rows_left = (work.tokens.count + 7) / 8 * 8 - warp * kQuarter;
    const int rows = rows_left < 0 ? 0 : rows_left < kQuarter ? rows_left : kQuarter;
    const int row_tile = static_cast<int>(work.row_tile) + S::kGroups * warp;
    const int own_tiles = row_tiles - row_tile < S::kGroups ? row_tiles - row_tile : S::kGroups;
    const uint8_t* weight = op.weight.tiles + work.tokens.expert * op.expert_bytes +
                            (row_tile * op.weight.units + k / S::kUnit) * S::kUnitBytes;
    int64_t place = int64_t{k / S::kStage} * padded_tokens + work.tokens.first + warp * kQuarter;
    for (; k < end; k += S::kStage, ring.advance()) {
      if (kEarly && left == 0) return stages;
      if (kEarly || left == 0) {
        const int units = (end - k < S::kStage ? end - k + S::kUnit - 1 : S::kStage) / S::kUnit;
        const int tiles = k >= own_begin && k < own_end ? own_tiles : 0;
        const auto tile_bytes = static_cast<uint32_t>(units * S::kUnitBytes);
        wait_arrivals(ring.empty(), ring.parity);
        if (threadIdx.x % 32 == 0) {
          const int bytes = rows * (kRowBytes + (S::kScalesAt == 0 ? 0 : 4));
          arrive_expecting(ring.full(), static_cast<uint32_t>(bytes) +
                                            (tiles > 0 ? static_cast<uint32_t>(tiles) : 0) * tile_bytes);
        }
        __syncwarp();
        uint8_t* to = ring.weight() + S::kGroups * warp * S::kTileBytes;
        if (tiles > 0) copy_bulk(to, weight, tile_bytes, ring.full());
        if (S::kGroups > 1 && tiles > 1) {
          copy_bulk(to + S::kTileBytes, weight + op.weight.units * S::kUnitBytes, tile_bytes, ring.full());
        }
      }
      weight += S::kTileBytes;
      if (left > 0) --left;
      if (!kEarly && rows > 0) {
        copy_bulk(ring.tokens() + warp * kQuarter * kRowBytes, op.prepared + place * kRowBytes,
                  static_cast<uint32_t>(rows * kRowBytes), ring.full());
        if constexpr (S::kScalesAt != 0) {
          copy_bulk(ring.tokens() + S::kScalesAt + warp * kQuarter * 4,
                    reinterpret_cast<const float*>(op.meta) + place, static_cast<uint32_t>(rows * 4),
                    ring.full());
        }
        place += padded_tokens;
      }
    }
  }
  return stages - left;
}

// The first stages' part of the weight is asked for before the kernel before has ended, the tokens after.
template <class S>
__device__ inline void bring_stages(const MatmulArguments& op, uint8_t* shared) {
  // Counts say whose rows they are: nothing can be asked for before they are there.
  const int early = op.counts == nullptr ? bring<S, true>(op, shared, S::kStages) : 0;
  wait_for_previous();
  bring<S, false>(op, shared, early);
}

// Partial sums of a warpgroup: those of a segment at the given place, [four sums][thread].
template <class S>
__device__ inline float4* partials_of(const MatmulArguments& op, int place, int segment) {
  return reinterpret_cast<float4*>(op.partials) +
         (int64_t{place} * op.segments + segment) * (S::kSums / 4 * 128) + threadIdx.x % 128;
}
template <class S>
__device__ inline void leave_sums(const MatmulArguments& op, int place, int segment, int tokens,
                                  const float (&sums)[S::kSums]) {
  float4* to = partials_of<S>(op, place, segment);
#pragma unroll
  for (int i = 0; i < S::kSums / 4; ++i) {
    if (8 * i < tokens)
      to[i * 128] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
  }
}

// After a warpgroup has left sums of its segments, or the sum of them in `sums` where the first is among
// them: true in all its threads where all are there, which then have the sums of all.
template <class S>
__device__ inline bool add_up(const WgmmaWalk<S>& walk, const WgmmaWork& work, const WgmmaSegments& own,
                              uint8_t* shared, float (&sums)[S::kSums]) {
  const MatmulArguments& op = walk.op;
  const auto group = static_cast<int>(threadIdx.x / 128), segments = static_cast<int>(op.segments);
  const int place = walk.place_of(work, group), barrier = 2 + group;
  const auto count = static_cast<unsigned>(own.end - own.first);
  const bool asks = threadIdx.x % 128 == 0;
  unsigned* ticket = op.tickets + place;
  int* all_there = reinterpret_cast<int*>(shared + S::kIsLastAt) + group;
  int first = own.end;
  bool begins = false;         // with what is in memory
  barrier_sync(barrier, 128);  // all have read what it last said
  if (own.first == 0) {
    // Mostly the others have long been here. What is left in memory is on its way there meanwhile.
    leave_sums<S>(op, place, own.end - 1, work.tokens.count, sums);
    if (asks) *all_there = atomicAdd(ticket, 0u) + count == static_cast<unsigned>(segments) ? 1 : 0;
    barrier_sync(barrier, 128);
  }
  if (own.first > 0 || *all_there == 0) {
    __threadfence();
    barrier_sync(barrier, 128);
    if (asks) *all_there = atomicAdd(ticket, count) + count == static_cast<unsigned>(segments) ? 1 : 0;
    barrier_sync(barrier, 128);
    if (*all_there == 0) return false;
    first = walk.added_up(work, group) - 1, begins = true;
  }
  if (asks) *ticket = 0;  // for the next launch
  __threadfence();
  // As many segments at a time as there are registers for: each takes a way to the L2 cache.
  constexpr int kAtOnce = S::kSums >= 64 ? 1 : 128 / S::kSums, kFours = S::kSums / 4;
  float4 next[kAtOnce][kFours] = {};
  for (int from = first; from < segments; from += kAtOnce) {
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      const float4* partial = partials_of<S>(op, place, from + s);
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        if (from + s < segments && 8 * i < work.tokens.count) next[s][i] = __ldcg(partial + i * 128);
      }
    }
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      if (from + s >= segments) break;
      const bool anew = begins && from + s == first;
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float four[4] = {next[s][i].x, next[s][i].y, next[s][i].z, next[s][i].w};
#pragma unroll
        for (int n = 0; n < 4; ++n) sums[4 * i + n] = anew ? four[n] : sums[4 * i + n] + four[n];
      }
    }
  }
  return true;
}

// Rows `row` to `row` + 3, as finish_sum; `vectors`: all that belongs to a multiple of four rows is aligned.
__device__ inline void finish_four(const MatmulArguments& op, int64_t token, int64_t row, float4 sum,
                                   bool vectors) {
  const int64_t n = op.column + row;
  if (!vectors || row < op.first_row || row + 4 > op.end_row) {
    const float four[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row + i >= op.first_row && row + i < op.end_row) finish_sum(op, token, row + i, four[i]);
    }
    return;
  }
  if (op.bias != nullptr) {
    const float4 bias = *reinterpret_cast<const float4*>(op.bias + n);
    sum.x += bias.x, sum.y += bias.y, sum.z += bias.z, sum.w += bias.w;
  }
  if (op.activation != Activation::kNone) {
    sum.x = activate_sum(op.activation, op.soft_cap, sum.x);
    sum.y = activate_sum(op.activation, op.soft_cap, sum.y);
    sum.z = activate_sum(op.activation, op.soft_cap, sum.z);
    sum.w = activate_sum(op.activation, op.soft_cap, sum.w);
  }
  if (op.residual != nullptr) {
    const float4 more = *reinterpret_cast<const float4*>(op.residual + token * op.residual_stride + n);
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  }
  *reinterpret_cast<float4*>(op.y + token * op.y_stride + n) = sum;
}

// A warpgroup's 64 rows of the tile's tokens.
template <class S>
__device__ inline void store_tile(const MatmulArguments& op, const WgmmaWork& work, uint8_t* shared,
                                  const float (&sums)[S::kSums]) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int group = warp / 4, barrier = 2 + group;
  auto* chunk = reinterpret_cast<float*>(shared + S::kChunksAt + group * S::kGroupBytes);
  float* to = chunk + lane % 4 * 2 * S::kChunkRow + warp % 4 * kTileRows + lane / 4;
  const bool vectors =
      aligned_16(op.y + op.column) && op.y_stride % 4 == 0 &&
      (op.bias == nullptr || aligned_16(op.bias + op.column)) &&
      (op.residual == nullptr || (aligned_16(op.residual + op.column) && op.residual_stride % 4 == 0));
  const int64_t row = work.row_tile * kTileRows + group * 64 + threadIdx.x % 16 * 4;
#pragma unroll
  for (int c = 0; c < S::kTokens / S::kChunk; ++c) {
    if (c * S::kChunk >= work.tokens.count) break;
    barrier_sync(barrier, 128);  // what was there has left
#pragma unroll
    for (int i = 0; i < S::kChunk / 2; ++i) {
      to[(i / 4 * 8 + i % 2) * S::kChunkRow + i % 4 / 2 * 8] = sums[c * (S::kChunk / 2) + i];
    }
    barrier_sync(barrier, 128);
#pragma unroll 1  // what an activation takes
    for (int i = 0; i < S::kChunk / 8; ++i) {
      const int in_chunk = i * 8 + static_cast<int>(threadIdx.x % 128 / 16), token = c * S::kChunk + in_chunk;
      if (token < work.tokens.skip || token >= work.tokens.count) continue;
      const float4 four =
          *reinterpret_cast<const float4*>(chunk + in_chunk * S::kChunkRow + threadIdx.x % 16 * 4);
      finish_four(op, work.tokens.first + token, row, four, vectors);
    }
  }
  if constexpr (S::kSumsInShared) barrier_sync(barrier, 128);  // sums of segments lie there
}

// A warpgroup's sums leave at the end of a work: `sums` are those of all its segments, where the first is
// among them; else each was left when it ended.
template <class S>
__device__ inline void end_work(const WgmmaWalk<S>& walk, const WgmmaWork& work, const WgmmaSegments& own,
                                uint8_t* shared, float (&sums)[S::kSums]) {
  if (own.first == own.end) return;
  if constexpr (S::kLine) {
    const bool alone = own.first == 0 && own.end == static_cast<int>(walk.op.segments);
    if (!alone && !add_up<S>(walk, work, own, shared, sums)) return;
  }
  store_tile<S>(walk.op, work, shared, sums);
}

// This thread's sums of earlier segments in shared memory: 128 apart, behind each other.
template <class S>
__device__ inline float* sums_before(uint8_t* shared) {
  return reinterpret_cast<float*>(shared + S::kChunksAt + threadIdx.x / 128 * S::kGroupBytes) +
         threadIdx.x % 128;
}

// By all threads of a block, before its warps take their roles.
template <class S>
__device__ inline void open_ring(uint8_t* shared) {
  if (threadIdx.x == 0) {
    WgmmaRing<S> ring{shared};
    for (; ring.parity == 0; ring.advance()) {
      arrivals_init(ring.full(), 4);
      arrivals_init(ring.empty(), S::kConsumerWarps);
    }
    arrivals_ready();
  }
  __syncthreads();
}

}  // namespace qiao::cuda
