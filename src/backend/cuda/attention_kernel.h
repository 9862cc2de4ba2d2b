// Attention's kernel, over pages and over packed rows, for all who meet keys: decode, prefill, training.
//
// Plan. 16 rows (queries × the heads that share a key/value head, so that one load of a key serves them all)
// walk the keys they see in attention_order.h's order, in blocks of kBlock. The queries stay in shared memory
// in both parts (attention_elements.h), the 16 × D result in registers.
//   decode   a block takes one chunk of one sequence after the other, so that one long sequence fills the
//            device. Some of its warps bring (attention_bring.h): each walks all steps for itself, looks up a
//            step ahead where keys lie, and copies keys and values into a ring of parts (attention_ring.h),
//            as far ahead as shared memory has room, across the ends of chunks. Eight warps (or four) compute
//            (attention_chunk.h): they share the 16 rows and take eight blocks of keys at once: each scores
//            one of them, then adds all eight to its share of D, so nothing is computed twice, and two
//            barriers serve 256 keys of 16 bits. They look nothing up, and no copy is theirs, so no fence of
//            theirs waits for one. Of D 128 in 16 bits a part is 34 KB, of which six have room: four or more,
//            139 KB, are on their way at any time, and a step of 131 KB takes 4.1 us at the memory's
//            bandwidth, by reading the code some 1.5 us of those who compute. Chunks' results go to the
//            workspace, and the last block of a sequence's head merges them (attention_merge.h), which asks
//            whether it is the last while it computes what comes next. Where earlier steps wrote them, the
//            first step's keys are on their way before the kernel before has ended: 1.5 to 2 us a layer by
//            prediction (docs/h200.md says why they are there). Limit: the memory's bandwidth.
//            Prediction: 22 us for 32 sequences of 2048 keys (2 heads of 128, BF16), of which 16 are the
//            bandwidth's; before, when each warp brought its own keys, an H200 took 48. Not yet run on a
//            device.
//   prefill  (attention_warp.h) a block is four warps of 16 rows each, which share the loads, two stages of
//            cp.async, and walks all its chunks; between two, the rows of `out` hold what was merged so far.
//            Limit: the tensor cores, two products of TF32 for each one. In products of 16 bits:
//            attention_half_warp.h, on Hopper attention_wgmma.h.
// All make each sum in the same order, so they give the same bits. Skipped blocks, and rows that see nothing
// of a block, leave what there was: a weight of 0 adds 0, a factor of 1 changes nothing. (So a value that is
// no number reaches the rows of its tile that do not see it too.)
#pragma once

#include <algorithm>

#include "backend/cuda/attention_bring.h"
#include "backend/cuda/attention_chunk.h"
#include "backend/cuda/attention_half_warp.h"
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
// only the device knows. `parts`: that there is room for.
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(ChunkShape<Kind, kD>::kThreads, ChunkShape<Kind, kD>::kBlocks)
    attention_chunks(const __grid_constant__ AttentionArguments op, unsigned parts) {
  using Shape = ChunkShape<Kind, kD>;
  let_next_begin();
  open_chunks<Shape>(parts);
  if (!op.early) wait_for_previous();
  if (threadIdx.x >= 32 * Shape::kWarps) {
    ChunkBringer<Kind, kD>(op, parts).run();
  } else {
    wait_for_previous();
    use_parts<Kind, kD>(op, parts);
  }
}

// What a device has room for; fewer than two parts: not for a block.
template <template <int> class Kind, int kD>
ChunkRoom room_for_chunks(const AttentionLaunch& how) {
  using Shape = ChunkShape<Kind, kD>;
  ChunkRoom room = chunk_room(Shape::kBlocks, Shape::kWantedParts, how.block_shared_bytes, Shape::kPartsAt,
                              Shape::kPartBytes);
  room.parts = std::min(room.parts, Shape::kMostParts);
  return room;
}

template <template <int> class Kind, int kD>
void launch_chunks(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  using Shape = ChunkShape<Kind, kD>;
  const ChunkRoom room = room_for_chunks<Kind, kD>(how);
  const unsigned blocks = std::min(how.chunks, static_cast<unsigned>(room.blocks * how.multiprocessors));
  launch(how.name, stream, attention_chunks<Kind, kD>, blocks, Shape::kThreads,
         static_cast<size_t>(Shape::kPartsAt + room.parts * Shape::kPartBytes), op,
         static_cast<unsigned>(room.parts));
}

template <template <int> class Kind, int kD>
void launch_attention(const Stream& stream, AttentionLaunch how, AttentionArguments op) {
  using Shape = AttentionShape<Kind, kD>;
  const auto kv_heads = static_cast<unsigned>(op.kv_heads);
  if (how.chunks != 0 && room_for_chunks<Kind, kD>(how).parts < 2) {  // a device that is not a server's
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
  if (Shape::kSharedBytes > how.block_shared_bytes || room_for_chunks<Kind, kD>(how).parts < 2) return false;
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
