// Attention's kernel, over pages and over packed rows, for all who meet keys: decode, prefill, training.
//
// Plan. 16 rows (queries × the heads that share a key/value head, so that one load of a key serves them all)
// walk the keys they see in attention_order.h's order, in blocks of kBlock. Keys and values come by cp.async
// in two stages, one on its way while the other is computed; the queries stay in shared memory in both parts
// (attention_elements.h), the 16 × D result in registers.
//   decode   a block takes one chunk of one sequence after the other, so that one long sequence fills the
//            device. Its four warps share the 16 rows: each makes the scores of some keys, reads all of them
//            from shared memory, and adds to its quarter of D. D 128 of 16 bits takes 54 KB: four blocks an
//            SM, 68 KB on their way. Limit: the memory's bandwidth (Q8_0: maybe its arithmetic). Chunks'
//            results go to the workspace; attention.cu merges them.
//   prefill  a block is four warps of 16 rows each, which share the loads, and walks all its chunks; between
//            two, the rows of `out` hold what was merged so far. Limit: the tensor cores, two products of
//            TF32 for each one of 16-bit pages.
// Both make each sum in the same order, so they give the same bits. Skipped blocks, and rows that see nothing
// of a block, leave what there was: a weight of 0 adds 0, a factor of 1 changes nothing. (So a value that is
// no number reaches the rows of its tile that do not see it too.)
// Later, with a device at hand: wgmma (m64nNk8, the same depth a product), TMA loads and a producer warp; the
// order of blocks, parts and chunks is what has to stay. Not yet run on a device.
#pragma once

#include "backend/cuda/attention_warp.h"

namespace qiao::cuda {

__device__ inline void describe(const AttentionArguments& op, AttentionTile* tile) {
  tile->first_query_row = op.starts[tile->sequence];
  tile->queries = op.starts[tile->sequence + 1] - tile->first_query_row;
  tile->length = op.lengths == nullptr ? tile->queries : op.lengths[tile->sequence];
}

// Blocks: tiles × key/value heads. At most 128 threads, so that each may have 255 registers.
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(32 * kMostWarps)
    attention_tiles(const __grid_constant__ AttentionArguments op) {
  begin_kernel();
  FoundTile found{};
  const int tile_rows = kWarpRows * static_cast<int>(blockDim.x / 32);
  const auto tiles = [&](int s) {
    const int queries = op.starts[s + 1] - op.starts[s];
    const bool elsewhere = op.slots > 0 && queries > 0 && is_split(op, queries, op.lengths[s]);
    return elsewhere ? 0 : tiles_of(queries * op.share, tile_rows);
  };
  if (!find_tile(static_cast<int>(blockIdx.x), op.sequences, tiles, &found)) return;
  AttentionTile tile{};
  tile.sequence = found.sequence;
  tile.tile = found.count - 1 - found.tile;  // the last one first: it meets the most keys
  describe(op, &tile);
  tile.first_chunk = 0;
  tile.chunks = (tile.length - 1) / kChunkKeys + 1;
  tile.slot = -1;
  AttentionWarp<Kind, kD, false>(op, tile).run();
}

// Blocks of kMostWarps × key/value heads; each takes chunk after chunk of all sequences, whose number only
// the device knows. As many of them have registers as shared memory holds (heads of 256: two).
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(32 * kMostWarps, kD <= 128 ? 4 : 2)
    attention_chunks(const __grid_constant__ AttentionArguments op) {
  begin_kernel();
  const auto chunks_of_sequence = [&](int s) {
    const int queries = op.starts[s + 1] - op.starts[s];
    if (queries == 0) return 0;
    if (is_split(op, queries, op.lengths[s])) return chunks_of(queries, op.lengths[s], op.window).count;
    return op.tiles_follow ? 0 : 1;
  };
  FoundTile found{};
  for (int item = static_cast<int>(blockIdx.x); find_tile(item, op.sequences, chunks_of_sequence, &found);
       item += static_cast<int>(gridDim.x)) {
    AttentionTile tile{};
    tile.sequence = found.sequence;
    describe(op, &tile);
    const Chunks chunks = chunks_of(tile.queries, tile.length, op.window);
    const bool split = is_split(op, tile.queries, tile.length);
    tile.first_chunk = chunks.first + (split ? found.tile : 0);
    tile.chunks = split ? 1 : chunks.count;
    tile.slot = split && chunks.count > 1 ? found.tile : -1;
    const int tiles = tiles_of(tile.queries * op.share, kWarpRows);
    for (tile.tile = 0; tile.tile < tiles; ++tile.tile) {
      AttentionWarp<Kind, kD, true>(op, tile).run();
      __syncthreads();  // shared memory is read
    }
  }
}

template <template <int> class Kind, int kD>
void launch_attention(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  using Shape = AttentionShape<Kind, kD>;
  const auto kv_heads = static_cast<unsigned>(op.heads / op.share);
  launch(how.name, stream, attention_chunks<Kind, kD>, dim3(how.chunks, kv_heads), 32 * kMostWarps,
         static_cast<size_t>(Shape::shared_bytes(1)), op);
  if (how.tile_rows == 0) return;
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

}  // namespace qiao::cuda
