// Attention's kernel, over pages and over packed rows, for all who meet keys: decode, prefill, training.
//
// Plan. 16 rows (queries × the heads that share a key/value head, so that one load of a key serves them all)
// walk the keys they see in attention_order.h's order, in blocks of kBlock. The queries stay in shared memory
// in both parts (attention_elements.h), the 16 × D result in registers.
//   decode   (attention_chunk.h) a block takes one chunk of one sequence after the other, so that one long
//            sequence fills the device. Its eight warps share the 16 rows and take eight blocks of keys at
//            once: each copies and scores one of them, then adds all eight to its share of D, so nothing is
//            computed twice, and three barriers serve 256 keys of 16 bits. The next keys are on their way
//            once these are read, the next values once those are, whatever chunk they are of. A step of
//            D 128 of 16 bits is 139 KB: one block an SM, of whose bytes at least half are always on their
//            way; it takes 4.3 us at the memory's bandwidth and some 2 us of a block's own time, which lie
//            beside it. Limit: the memory's bandwidth, of which an H200 reached a third (32 sequences of 2048
//            keys: docs/h200.md). Chunks' results go to the workspace, and the last
//            block of a sequence's head merges them (attention_merge.h).
//   prefill  (attention_warp.h) a block is four warps of 16 rows each, which share the loads, two stages of
//            cp.async, and walks all its chunks; between two, the rows of `out` hold what was merged so far.
//            Limit: the tensor cores, two products of TF32 for each one. In products of 16 bits:
//            attention_half_warp.h, on Hopper attention_wgmma.h.
// All make each sum in the same order, so they give the same bits. Skipped blocks, and rows that see nothing
// of a block, leave what there was: a weight of 0 adds 0, a factor of 1 changes nothing. (So a value that is
// no number reaches the rows of its tile that do not see it too.)
#pragma once

#include <algorithm>

#include "backend/cuda/attention_chunk.h"
#include "backend/cuda/attention_half_warp.h"
#include "backend/cuda/attention_merge.h"
#include "backend/cuda/attention_warp.h"
#include "backend/cuda/attention_wgmma.h"

namespace qiao::cuda {

// Blocks: tiles × key/value heads. At most 128 threads, so that each may have 255 registers.
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(32 * kMostWarps)
    attention_tiles(const __grid_constant__ AttentionArguments op) {
  begin_kernel();
  AttentionTile tile{};
  if (!find_whole(op, static_cast<int>(blockIdx.x), kWarpRows * static_cast<int>(blockDim.x / 32), &tile)) {
    return;
  }
  tile.kv_head = static_cast<int>(blockIdx.y);
  AttentionWarp<Kind, kD>(op, tile).run();
}

// Blocks: of each tile all key/value heads, so that the longest begin first.
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(32 * RoundedShape<Kind, kD>::kWarps)
    attention_rounded(const __grid_constant__ AttentionArguments op) {
  begin_kernel();
  const auto kv_heads = static_cast<unsigned>(op.kv_heads);
  AttentionTile tile{};
  if (!find_whole(op, static_cast<int>(blockIdx.x / kv_heads), kWarpRows * RoundedShape<Kind, kD>::kWarps,
                  &tile)) {
    return;
  }
  tile.kv_head = static_cast<int>(blockIdx.x % kv_heads);
  RoundedWarp<Kind, kD>(op, tile).run();
}

// As many blocks as run at once; each takes every so manieth item (ChunkWalk) of all sequences, whose number
// only the device knows.
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(32 * ChunkShape<Kind, kD>::kWarps, ChunkShape<Kind, kD>::kBlocks)
    attention_chunks(const __grid_constant__ AttentionArguments op) {
  begin_kernel();
  using Chunk = AttentionChunk<Kind, kD>;
  constexpr int kWarps = ChunkShape<Kind, kD>::kWarps;
  ChunkWalk<ChunkShape<Kind, kD>::kStep> walk(op);
  if (!walk.there()) return;
  Chunk::begin(op, walk);
  QIAO_SHARED(AttentionTile, tiles, kWarps);
  AttentionTile& tile = tiles[threadIdx.x / 32];
  while (walk.there()) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) tile = walk.tile();
    __syncwarp();
    Chunk(op, tile).run(walk);
    if (tile.slot < 0 || walk.same_item(tile)) continue;
    const int chunks = chunks_of(tile.queries, tile.length, op.window).count;
    if (is_last_chunk(op, tile.sequence, tile.kv_head, chunks)) {
      merge_chunks<kD>(op, tile.sequence, tile.kv_head, tile.first_query_row, tile.queries, tile.length);
    }
  }
  copy_async_wait<0>();
}

template <template <int> class Kind, int kD>
void launch_chunks(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  using Shape = ChunkShape<Kind, kD>;
  const unsigned blocks = std::min(how.chunks, static_cast<unsigned>(Shape::kBlocks * how.multiprocessors));
  launch(how.name, stream, attention_chunks<Kind, kD>, blocks, 32 * Shape::kWarps,
         static_cast<size_t>(Shape::kSharedBytes), op);
}

template <template <int> class Kind, int kD>
void launch_attention(const Stream& stream, AttentionLaunch how, AttentionArguments op) {
  using Shape = AttentionShape<Kind, kD>;
  using Chunks = ChunkShape<Kind, kD>;
  const auto kv_heads = static_cast<unsigned>(op.kv_heads);
  if (how.chunks != 0 && Chunks::kSharedBytes > how.block_shared_bytes) {  // a device that is not a server's
    how.chunks = 0, how.tile_warps = 1;
    op.slots = 0;
  }
  launch_chunks<Kind, kD>(stream, how, op);
  if (how.tile_rows == 0 || (op.slots != 0 && !op.tiles_follow)) return;
  const int warps = warps_that_fit<Shape>(how.tile_warps, how.block_shared_bytes);
  launch(how.name, stream, attention_tiles<Kind, kD>,
         dim3(most_tiles(how.tile_rows, op.sequences, warps * kWarpRows), kv_heads),
         static_cast<unsigned>(32 * warps), static_cast<size_t>(Shape::shared_bytes(warps)), op);
}
template <template <int> class Kind>
void launch_attention(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  if (op.dim <= 64) return launch_attention<Kind, 64>(stream, how, op);
  if (op.dim <= 128) return launch_attention<Kind, 128>(stream, how, op);
  launch_attention<Kind, 256>(stream, how, op);
}

// The same in products of 16 bits, for heads of up to 128 (RoundedWarp's registers); false: not on this
// device.
template <template <int> class Kind, int kD>
bool launch_rounded(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  using Shape = RoundedShape<Kind, kD>;
  if (std::max(Shape::kSharedBytes, ChunkShape<Kind, kD>::kSharedBytes) > how.block_shared_bytes)
    return false;
  launch_chunks<Kind, kD>(stream, how, op);
  if (!op.tiles_follow) return true;
  using Hopper = AttentionWgmmaShape<Kind, kD>;
  if (stream.compute_major() == 9 && Hopper::kSharedBytes <= how.block_shared_bytes) {
    const unsigned items =
        most_tiles(how.tile_rows, op.sequences, Hopper::kRows) * static_cast<unsigned>(op.kv_heads);
    launch(how.name, stream, attention_wgmma<Kind, kD>,
           std::min(items, static_cast<unsigned>(how.multiprocessors)), Hopper::kThreads,
           static_cast<size_t>(Hopper::kSharedBytes), op);
    return true;
  }
  const unsigned tiles = most_tiles(how.tile_rows, op.sequences, Shape::kWarps * kWarpRows);
  launch(how.name, stream, attention_rounded<Kind, kD>, tiles * static_cast<unsigned>(op.kv_heads),
         32 * Shape::kWarps, static_cast<size_t>(Shape::kSharedBytes), op);
  return true;
}
template <template <int> class Kind>
bool launch_rounded(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  if (op.dim > 128) return false;
  return op.dim <= 64 ? launch_rounded<Kind, 64>(stream, how, op)
                      : launch_rounded<Kind, 128>(stream, how, op);
}

}  // namespace qiao::cuda
