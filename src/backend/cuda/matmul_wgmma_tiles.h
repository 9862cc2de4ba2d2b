// What the products by wgmma (matmul_wgmma.h, matmul_wgmma_f8.h) have in common: which tile and part of K is
// a block's next, how the warps that bring stages and those that multiply hand them on, and how sums leave. S
// is a block's shape, where things lie in its shared memory.
#pragma once

#include <algorithm>

#include "backend/cuda/matmul.h"

namespace qiao::cuda {

// Rows of x from `first` on, a multiple of 8, that share an expert, but for the first `skip`.
struct WgmmaTokens {
  int64_t first = 0;
  int skip = 0, count = 0;  // count: with those; 0: none
  int expert = 0;
};

// Tile `tile` of `size` rows, counted over the experts; by whole warps, the same in each lane.
__device__ inline WgmmaTokens wgmma_tokens(const int32_t* counts, int experts, int64_t tokens, int64_t tile,
                                           int size) {
  if (counts == nullptr) {
    const int64_t left = tokens - tile * size;
    return {tile * size, 0, static_cast<int>(left < size ? left : size), 0};
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  int64_t rows_before = 0, tiles_before = 0;
  for (int base = 0; base < experts; base += 32) {
    const int count = base + lane < experts ? counts[base + lane] : 0;
    int rows = count;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int more = __shfl_up_sync(kAllLanes, rows, step);
      if (lane >= step) rows += more;
    }
    const int skip = static_cast<int>((rows_before + rows - count) % 8);
    const int own_tiles = count == 0 ? 0 : (skip + count + size - 1) / size;
    int tiles = own_tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int more = __shfl_up_sync(kAllLanes, tiles, step);
      if (lane >= step) tiles += more;
    }
    const uint32_t beyond = __ballot_sync(kAllLanes, tiles_before + tiles > tile);
    if (beyond != 0) {
      const int at = __ffs(static_cast<int>(beyond)) - 1;
      const int own = __shfl_sync(kAllLanes, count, at), before = __shfl_sync(kAllLanes, rows, at) - own;
      const int of_first = __shfl_sync(kAllLanes, skip, at);
      const int64_t inside = tile - tiles_before - __shfl_sync(kAllLanes, tiles - own_tiles, at);
      const int64_t left = of_first + own - inside * size;
      return {rows_before + before - of_first + inside * size, inside == 0 ? of_first : 0,
              static_cast<int>(left < size ? left : size), base + at};
    }
    rows_before += __shfl_sync(kAllLanes, rows, 31);
    tiles_before += __shfl_sync(kAllLanes, tiles, 31);
  }
  return {};
}

// What a block does at once: a tile, and all of K or a segment.
struct WgmmaWork {
  WgmmaTokens tokens;
  int tile, segment;  // of row_blocks * token_tiles, and of K where they are split
  int64_t row_tile;   // its first
  int64_t begin, end;
};

// Blocks that run at once share few rows of x and of the weight: tiles of this many columns.
inline constexpr int kWgmmaColumns = 16;

// `item` of wgmma_items.
template <int kTokens>
__device__ inline WgmmaWork wgmma_work(const MatmulArguments& op, int item) {
  const auto row_blocks = static_cast<int>(op.row_blocks), token_tiles = static_cast<int>(op.token_tiles);
  WgmmaWork work;
  work.segment = item / (row_blocks * token_tiles), work.tile = item % (row_blocks * token_tiles);
  const int column = work.tile / (kWgmmaColumns * row_blocks) * kWgmmaColumns;
  const int left = token_tiles - column, width = left < kWgmmaColumns ? left : kWgmmaColumns;
  const int inside = work.tile - column * row_blocks;
  work.tokens = wgmma_tokens(op.counts, op.experts, op.tokens, column + inside % width, kTokens);
  work.row_tile = op.first_row / kTileRows + inside / width * (kManyRows / kTileRows);
  work.begin = op.split ? work.segment * op.segment : 0;
  const int64_t end = work.begin + op.segment;
  work.end = op.split && end < op.weight.columns ? end : op.weight.columns;
  return work;
}
__host__ __device__ inline int wgmma_items(const MatmulArguments& op) {
  return static_cast<int>(op.row_blocks * op.token_tiles * (op.split ? op.segments : 1));
}

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

// By each of four warps: a quarter of a stage's tokens and two of its tiles of 16 rows (one warp would take
// as long to ask for all as the tensor cores to use them).
template <class S>
__device__ inline void bring_stages(const MatmulArguments& op, uint8_t* shared) {
  constexpr int kQuarter = S::kTokens / 4, kRowBytes = 128;
  WgmmaRing<S> ring{shared};
  ring.parity = 1;  // at first each slot is empty
  const int warp = static_cast<int>(threadIdx.x / 32) - S::kConsumerWarps, items = wgmma_items(op);
  const int64_t row_tiles = ceil_div(op.end_row, kTileRows), tile_row_bytes = op.weight.units * S::kUnitBytes;
  const int64_t padded_tokens = ceil_div(op.tokens, 8) * 8;
  // The first stages' part of the weight is asked for before the kernel before has ended, the tokens after.
  bool waited = op.counts != nullptr;  // it says whose rows they are
  if (waited) wait_for_previous();
  int held = 0;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const WgmmaWork work = wgmma_work<S::kTokens>(op, item);
    if (work.tokens.count == 0) continue;
    const int rows_left = (work.tokens.count + 7) / 8 * 8 - warp * kQuarter;
    const int rows = rows_left < 0 ? 0 : rows_left < kQuarter ? rows_left : kQuarter;
    int64_t place = work.begin / S::kStage * padded_tokens + work.tokens.first + warp * kQuarter;
    const int64_t tiles_left = row_tiles - (work.row_tile + 2 * warp);
    const int tiles = tiles_left < 0 ? 0 : tiles_left < 2 ? static_cast<int>(tiles_left) : 2;
    const uint8_t* weight = op.weight.tiles + work.tokens.expert * op.expert_bytes +
                            (work.row_tile + 2 * warp) * tile_row_bytes +
                            work.begin / S::kUnit * S::kUnitBytes;
    const auto token_bytes = static_cast<uint32_t>(rows * kRowBytes);
    const auto scale_bytes = static_cast<uint32_t>(S::kScalesAt == 0 ? 0 : rows * 4);
    for (auto left = static_cast<int>(work.end - work.begin); left > 0; left -= S::kStage) {
      const auto tile_bytes = static_cast<uint32_t>(
          left < S::kStage ? (left + S::kUnit - 1) / S::kUnit * S::kUnitBytes : S::kTileBytes);
      wait_arrivals(ring.empty(), ring.parity);
      if (threadIdx.x % 32 == 0) {
        arrive_expecting(ring.full(), token_bytes + scale_bytes + static_cast<uint32_t>(tiles) * tile_bytes);
      }
      __syncwarp();
      uint8_t* tiles_to = ring.weight() + 2 * warp * S::kTileBytes;
      if (tiles > 0) copy_bulk(tiles_to, weight, tile_bytes, ring.full());
      if (tiles > 1) copy_bulk(tiles_to + S::kTileBytes, weight + tile_row_bytes, tile_bytes, ring.full());
      weight += S::kTileBytes;
      ++held;
      if (waited || held == S::kStages || left <= S::kStage) {
        if (!waited) wait_for_previous();
        WgmmaRing<S> to = ring;
        if (!waited) to.slot = 0;
        waited = true;
        for (; held > 0; --held, to.advance(), place += padded_tokens) {
          if (rows == 0) continue;
          copy_bulk(to.tokens() + warp * kQuarter * kRowBytes, op.prepared + place * kRowBytes, token_bytes,
                    to.full());
          if constexpr (S::kScalesAt != 0) {
            copy_bulk(to.tokens() + S::kScalesAt + warp * kQuarter * 4,
                      reinterpret_cast<const float*>(op.meta) + place, scale_bytes, to.full());
          }
        }
      }
      ring.advance();
    }
  }
}

// As add_segments of matmul.h, for the threads that have sums.
template <class S>
__device__ inline bool add_wgmma_segments(const MatmulArguments& op, const WgmmaWork& work, uint8_t* shared,
                                          float (&sums)[S::kSums]) {
  float* partial = op.partials + work.tile * op.segments * (S::kConsumers * S::kSums) + threadIdx.x;
  float* own = partial + int64_t{work.segment} * (S::kConsumers * S::kSums);
#pragma unroll
  for (int i = 0; i < S::kSums; ++i) own[i * S::kConsumers] = sums[i];
  int* is_last = reinterpret_cast<int*>(shared + S::kIsLastAt);
  __threadfence();
  barrier_sync(1, S::kConsumers);
  if (threadIdx.x == 0) {
    is_last[0] = atomicAdd(op.tickets + work.tile, 1u) == static_cast<unsigned>(op.segments - 1) ? 1 : 0;
    if (is_last[0] != 0) op.tickets[work.tile] = 0;  // for the next launch
  }
  barrier_sync(1, S::kConsumers);
  if (is_last[0] == 0) return false;
  __threadfence();
#pragma unroll
  for (int i = 0; i < S::kSums; ++i) sums[i] = __ldcg(partial + i * S::kConsumers);
  for (int64_t s = 1; s < op.segments; ++s) {
    const float* next = partial + s * (S::kConsumers * S::kSums);
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) sums[i] += __ldcg(next + i * S::kConsumers);
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

// This thread's sums of earlier segments in shared memory: 128 apart, behind each other.
template <class S>
__device__ inline float* sums_before(uint8_t* shared) {
  return reinterpret_cast<float*>(shared + S::kChunksAt + threadIdx.x / 128 * S::kGroupBytes) +
         threadIdx.x % 128;
}
// Where a segment ends: all sums so far in `sums` where it is the last one, else there, and zeros in `sums`.
template <int kSums>
__device__ inline void end_segment(float* before, float (&sums)[kSums], bool is_first, bool is_last) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const float own = is_first ? sums[i] : before[i * 128] + sums[i];
    if (!is_last) before[i * 128] = own;
    sums[i] = is_last ? own : 0;
  }
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

// As many tiles leave half of a device idle where a block walks all segments.
inline constexpr int64_t kWgmmaSplitTiles = 66;

// Tiles of `size` tokens, at most; those of experts begin at multiples of 8.
inline int64_t wgmma_token_tiles(int64_t tokens, int64_t experts, bool counted, int size) {
  if (!counted) return ceil_div(tokens, size);
  const int64_t with_rows = std::min(experts, tokens);
  return with_rows + (tokens + 7 * with_rows) / size;
}

// Tokens of a tile, `most` at most: what the device is done with first. Smaller ones load operands more
// often, so they take more than their share of the time.
inline int best_wgmma_tile(const MatmulArguments& op, int64_t multiprocessors, int most) {
  const int64_t with_rows = std::min<int64_t>(op.experts, op.tokens);
  const int64_t each = ceil_div(op.tokens, with_rows) + (op.experts > 1 ? 4 : 0);  // and where tiles begin
  int best = 0;
  int64_t least = 0;
  for (const auto& [size, time] : {std::pair<int, int>{256, 28}, {192, 21}, {128, 16}, {64, 12}}) {
    if (size > most) continue;
    const int64_t tiles = op.row_blocks * with_rows * ceil_div(each, size);
    const int64_t all = ceil_div(tiles, multiprocessors) * time;
    if (best == 0 || all < least) best = size, least = all;
  }
  return best;
}

}  // namespace qiao::cuda
