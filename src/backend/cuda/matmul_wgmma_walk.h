// Which tile and part of K is a block's next in the products by wgmma (matmul_wgmma.h, matmul_wgmma_f8.h),
// and which tiles a call has. A tile is some tokens by 64 rows of the weight for each of a block's kGroups
// warpgroups that multiply. S is a block's shape.
//
// Many tokens: a block has a tile, then the one as many further as there are blocks: those that run at once
// share rows of x and of the weight in the L2 cache.
//
// Few (up to kMostLineTokens, or experts of few rows each, or few tiles): the limit is the memory's
// bandwidth, and whole tiles over 132 multiprocessors come out uneven. So units of 64 rows in a segment of K
// stand in a line, [tile][segment][group], and each block has an even share of it, of which it brings one
// stage after the other, across the ends of tiles. Where a block's share ends inside a tile, sums go through
// memory: what a block has of a group's segments from the first on it adds up, of later ones it leaves each,
// and the last to arrive adds those up, in ascending order. That block is mostly the one with the first
// segments, which it has last; the others had theirs first. (Of few tiles with many tokens the tensor cores
// are the limit: there shares are of whole segments of a tile; of whole tiles where those come out even.)
//
// On paper, at 4268 GB/s, BF16, 8B's products, in us, [what the weight takes; the slowest block's share of
// whole tiles as before, at an even part of the bandwidth; of the line]. 6144x4096: [11.8; 16.2; 12.2].
// 4096x4096: [7.9; 8.1; 8.1]. 28672x4096: [55; 65; 57]. 4096x14336: [27.5; 32.4; 28.4]. 128256x4096: [246;
// 259; 247]. A block that runs while others have ended gets more than an even part, up to two or three times,
// so the middle ones are upper bounds. Surer is what follows: each segment of a tile left 32 KB whatever the
// tokens, and the last of 14 to arrive read them one after the other, some 7 us where now it is 1 to 3: sums
// of part of the segments, of as many tokens as there are, several segments at a time. Some 1.5 us pass until
// the first stage is there, less where the kernel before leaves room: the weight does not wait for it, nor
// for the launch that prepares x. Not yet run on a device.
#pragma once

#include <algorithm>
#include <type_traits>

#include "backend/cuda/matmul.h"

namespace qiao::cuda {

// More blocks do not share a line: partial sums have room for so many.
inline constexpr int64_t kMostLineBlocks = 144;
// So many tiles leave a tenth of a device idle where a block has all segments of a tile.
inline constexpr int64_t kFewWgmmaTiles = 118;

// Of a gated product: both groups' sums end in a tile.
inline constexpr int kLeastGatedTokens = 32;

// Warpgroups that multiply, by the tokens of a tile: two share what a stage has of x, which the L2 cache
// then gives once. With 16 tokens that is a fifth of it, and partial sums of half as many blocks meet in a
// tile of one. A stage of 64 rows comes from memory in 445 cycles, with x of 16, 32, 64 and 128 tokens the L2
// cache gives 23, 23, 28 and 37 bytes a cycle to each multiprocessor: near what it can.
constexpr int wgmma_groups(int tokens) { return tokens <= 16 ? 1 : 2; }

// Rows of x from `first` on, a multiple of 8, that share an expert, but for the first `skip`.
struct WgmmaTokens {
  int64_t first = 0;
  int skip = 0, count = 0;  // count: with those; 0: none
  int expert = 0;
};

// Tile `tile` of `size` rows, counted over the experts; by whole warps, the same in each lane. Where there is
// no such tile, `tiles` is how many there are.
__device__ inline WgmmaTokens wgmma_tokens(const int32_t* counts, int experts, int64_t tokens, int64_t tile,
                                           int size, int64_t& tiles_before) {
  tiles_before = 0;
  if (counts == nullptr) {
    const int64_t left = tokens - tile * size;
    return {tile * size, 0, static_cast<int>(left < size ? left : size), 0};
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  int64_t rows_before = 0;
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

// Segments of K.
struct WgmmaSegments {
  int first, end;
};

// What a block does at once: a tile, and of its units, [segment][group], those from `from` to `to`.
struct WgmmaWork {
  WgmmaTokens tokens;
  int tile;
  int64_t row_tile;  // its first; of a gated product gate's
  int from, to;
};

// Blocks that run at once share few rows of x and of the weight: tiles of this many columns.
inline constexpr int kWgmmaColumns = 16;

// A block's work, one after the other; by whole warps.
template <class S>
struct WgmmaWalk {
  const MatmulArguments& op;
  int token_tiles, of_tile, all;  // of_tile, all: units
  int at, end;

  __device__ explicit WgmmaWalk(const MatmulArguments& arguments)
      : op(arguments), of_tile(static_cast<int>(op.segments) * S::kGroups) {
    int64_t tiles = op.token_tiles;  // of experts, at most
    if (op.counts != nullptr) {
      wgmma_tokens(op.counts, op.experts, op.tokens, int64_t{1} << 62, S::kTokens, tiles);
    }
    token_tiles = static_cast<int>(tiles);
    all = token_tiles * static_cast<int>(op.row_blocks) * of_tile;
    const auto block = static_cast<int>(blockIdx.x);
    at = op.line ? share_begin(block) : block * of_tile;
    end = op.line ? share_begin(block + 1) : all;
  }

  // Of the line: a block's first unit, and the block that has a unit.
  __device__ int share_begin(int block) const {
    const auto grain = static_cast<int>(op.grain);
    return static_cast<int>(int64_t{block} * (all / grain) / static_cast<int>(gridDim.x)) * grain;
  }
  __device__ int block_of(int unit) const {
    const auto grain = static_cast<int>(op.grain), blocks = static_cast<int>(gridDim.x);
    return static_cast<int>(((int64_t{unit / grain} + 1) * blocks - 1) / (all / grain));
  }

  __device__ bool more() const { return at < end; }
  __device__ void advance() {
    if (op.line) {
      at = (at / of_tile + 1) * of_tile;
    } else {
      at += static_cast<int>(gridDim.x) * of_tile;
    }
  }

  __device__ WgmmaWork work() const {
    const auto row_blocks = static_cast<int>(op.row_blocks);
    WgmmaWork work;
    work.tile = at / of_tile;
    work.from = at - work.tile * of_tile;
    const int left = end - work.tile * of_tile;
    work.to = left < of_tile ? left : of_tile;
    const int column = work.tile / (kWgmmaColumns * row_blocks) * kWgmmaColumns;
    const int beside = token_tiles - column, width = beside < kWgmmaColumns ? beside : kWgmmaColumns;
    const int inside = work.tile - column * row_blocks;
    int64_t before = 0;
    work.tokens = wgmma_tokens(op.counts, op.experts, op.tokens, column + inside % width, S::kTokens, before);
    const int row_tiles = (op.gated != 0 ? S::kRows / 2 : S::kRows) / kTileRows;
    work.row_tile = op.first_row / kTileRows + int64_t{inside} / width * row_tiles;
    return work;
  }

  // Those that any group has, and those of a group.
  __device__ WgmmaSegments segments_of(const WgmmaWork& work) const {
    if constexpr (!S::kLine) return {0, static_cast<int>(op.segments)};  // of any tile
    return {work.from / S::kGroups, (work.to + S::kGroups - 1) / S::kGroups};
  }
  __device__ WgmmaSegments segments_of(const WgmmaWork& work, int group) const {
    if constexpr (!S::kLine) return segments_of(work);
    const int up = S::kGroups - 1 - group;
    return {(work.from + up) / S::kGroups, (work.to + up) / S::kGroups};
  }
  // Of K.
  __device__ int64_t begin_of(const WgmmaSegments& segments) const { return segments.first * op.segment; }
  __device__ int64_t end_of(const WgmmaSegments& segments) const {
    const int64_t end = segments.end * op.segment;
    return end < op.weight.columns ? end : op.weight.columns;
  }

  // Of a tile that several blocks share: the place of a group's partial sums, which no other tile has.
  __device__ int place_of(const WgmmaWork& work, int group) const {
    const bool few = all <= static_cast<int>(gridDim.x) * of_tile;
    return (few ? work.tile : block_of(work.tile * of_tile)) * S::kGroups + group;
  }
  // And how many of the group's segments one block adds up: those of the block that has the first.
  __device__ int added_up(const WgmmaWork& work, int group) const {
    const int first = work.tile * of_tile, end = share_begin(block_of(first + group) + 1) - first;
    const int to = end < of_tile ? end : of_tile;
    return (to + S::kGroups - 1 - group) / S::kGroups;
  }
};

// Tiles of `size` tokens, at most; those of experts begin at multiples of 8.
inline int64_t wgmma_token_tiles(int64_t tokens, int64_t experts, int size) {
  if (experts == 1) return ceil_div(tokens, size);
  const int64_t with_rows = std::min(experts, tokens);
  return with_rows + (tokens + 7 * with_rows) / size;
}
inline int64_t wgmma_row_blocks(int64_t rows, int size) {
  return ceil_div(rows, int64_t{4} * kTileRows * wgmma_groups(size));
}

// Tokens of a tile, `most` at most: what the device is done with first. Smaller ones load operands more
// often, so they take more than their share of the time.
inline int best_wgmma_tile(const MatmulArguments& op, int64_t multiprocessors, int64_t each, int most) {
  const int64_t with_rows = std::min<int64_t>(op.experts, op.tokens);
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

// The tokens of a call's tiles, `most` at most, and what follows from them.
inline int plan_wgmma(MatmulArguments& op, int64_t multiprocessors, int most) {
  const int64_t rows = op.end_row - op.first_row / kTileRows * kTileRows;
  const int64_t with_rows = std::min<int64_t>(op.experts, op.tokens);
  const int64_t each = ceil_div(op.tokens, with_rows) + (op.experts > 1 ? 4 : 0);  // and where tiles begin
  // Experts have more rows and fewer: a second tile of one reads its weight again.
  const int64_t wanted = op.experts > 1 ? std::min(each * 3 / 2, op.tokens) : op.tokens;
  const int64_t most_line = op.experts > 1 ? 64 : kMostLineTokens;
  int size = op.gated == 0 ? 16 : kLeastGatedTokens;
  while (size < wanted && size < most_line) size *= 2;
  op.line = size >= wanted;
  if (!op.line) size = best_wgmma_tile(op, multiprocessors, each, most);
  op.token_tiles = wgmma_token_tiles(op.tokens, op.experts, size);
  op.row_blocks = op.gated == 0 ? wgmma_row_blocks(rows, size) : ceil_div(op.gated, 64);
  // Where the tensor cores are the limit, a unit of one group takes as long as of both. A gated product's
  // groups end together.
  op.grain = op.line && op.gated == 0 ? 1 : wgmma_groups(size);
  const int64_t tiles = op.row_blocks * op.token_tiles;
  op.line = op.line || (op.segments > 1 && size <= kMostLineTokens && tiles <= kFewWgmmaTiles);
  const bool even =
      op.counts == nullptr && ceil_div(tiles, multiprocessors) * multiprocessors * 20 <= tiles * 21;
  if (op.line && even) op.grain = op.segments * wgmma_groups(size);
  return size;
}

// launch(size as a constant), of plan_wgmma's tiles of kMost tokens at most.
template <int kMost, class Launch>
void with_wgmma_tile(int size, Launch launch) {
  switch (size) {
    case 16:
      return launch(std::integral_constant<int, 16>());
    case 32:
      return launch(std::integral_constant<int, 32>());
    case 64:
      return launch(std::integral_constant<int, 64>());
    case 128:
      return launch(std::integral_constant<int, 128>());
    case 192:
      return launch(std::integral_constant<int, 192>());
    default:
      return launch(std::integral_constant<int, kMost>());
  }
}

// Blocks of a launch: those that run at once, or as many as there is work for.
template <class S>
unsigned wgmma_blocks(const MatmulArguments& op, int64_t multiprocessors) {
  const int64_t tiles = op.row_blocks * op.token_tiles;
  return static_cast<unsigned>(
      op.line ? std::min({multiprocessors, kMostLineBlocks, tiles * op.segments * S::kGroups / op.grain})
              : std::min(multiprocessors, tiles));
}

}  // namespace qiao::cuda
