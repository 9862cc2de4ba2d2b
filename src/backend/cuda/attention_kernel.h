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
//            results go to the workspace; the last block of a sequence's head to come merges them.
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

// The chunks of a sequence, for the rows of this block's key/value head: a warp a row, a lane every 32nd four
// dimensions, chunks in ascending order, some of them on their way at once. Copies: a reference would keep
// the tile out of registers.
QIAO_NO_INLINE __device__ inline void merge_chunks(const AttentionArguments& op, AttentionTile tile,
                                                   Chunks chunks) {
  constexpr int kAtOnce = 4, kFours = 256 / (4 * 32);  // of heads of up to 256
  const int lane = threadIdx.x % 32, width = (op.dim + 7) / 8 * 8;
  for (int r = threadIdx.x / 32; r < tile.queries * op.share; r += kMostWarps) {
    const int query = r / op.share, head = static_cast<int>(blockIdx.y) * op.share + r % op.share;
    const int position = tile.length - tile.queries + query;
    const int first = first_key(position, op.window) / kChunkKeys - chunks.first;
    const int last = position / kChunkKeys - chunks.first;
    const int64_t row = (int64_t{tile.sequence} * op.split_queries + query) * op.heads + head;
    const float *largest_of = op.split_largest + row * op.slots, *sum_of = op.split_sum + row * op.slots;
    const float* out_of = op.split_out + row * op.slots * width;
    float4 out[kFours];
    float largest = 0, sum = 0;
    for (int slot = first; slot <= last; slot += kAtOnce) {
      float heres[kAtOnce], sums[kAtOnce];
      float4 x[kAtOnce][kFours];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = min(slot + i, last);
        heres[i] = __ldcg(largest_of + at), sums[i] = __ldcg(sum_of + at);
#pragma unroll
        for (int n = 0; n < kFours; ++n) {
          const int d = 4 * (lane + 32 * n);
          x[i][n] = d < width ? __ldcg(reinterpret_cast<const float4*>(out_of + int64_t{at} * width + d))
                              : make_float4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (slot + i > last) break;
        const bool begins = slot + i == first;
        const Merge merge = merge_of(begins ? heres[i] : largest, heres[i]);
        sum = begins ? sums[i] : fmaf(sums[i], merge.after, sum * merge.before);
        largest = begins ? heres[i] : merge.largest;
        const auto fold = [&](float before, float after) {
          return begins ? after : fmaf(after, merge.after, before * merge.before);
        };
#pragma unroll
        for (int n = 0; n < kFours; ++n) {
          out[n] = make_float4(fold(out[n].x, x[i][n].x), fold(out[n].y, x[i][n].y),
                               fold(out[n].z, x[i][n].z), fold(out[n].w, x[i][n].w));
        }
      }
    }
    float* to = op.out + (tile.first_query_row + query) * op.out_token + head * op.out_head;
#pragma unroll
    for (int n = 0; n < kFours; ++n) {
      const float values[4] = {out[n].x / sum, out[n].y / sum, out[n].z / sum, out[n].w / sum};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int d = 4 * (lane + 32 * n) + i;
        if (d < op.dim) to[d] = values[i];
      }
    }
  }
}

// Blocks of kMostWarps × key/value heads; each takes chunk after chunk of all sequences, whose number only
// the device knows. As many of them have registers as shared memory holds (heads of 256: two).
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(32 * kMostWarps, kD <= 128 ? 4 : 2)
    attention_chunks(const __grid_constant__ AttentionArguments op) {
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
    if (tile.slot < 0) continue;
    unsigned* ticket = op.tickets + tile.sequence * static_cast<int>(gridDim.y) + blockIdx.y;
    if (last_to_come(ticket, static_cast<unsigned>(chunks.count))) merge_chunks(op, tile, chunks);
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
