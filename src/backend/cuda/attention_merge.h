// The merging of chunks that were computed apart: by the block that was the last to finish one of its
// sequence and key/value head; a warp a row, chunks in ascending order, the same steps as finish_chunk's.
#pragma once

#include "backend/cuda/attention_ring.h"

namespace qiao::cuda {

// The rows of a sequence's queries for one key/value head, by the warps of a block that compute; kD: heads'
// most.
template <class Shape, int kD>
__device__ inline void merge_chunks(const AttentionArguments& op, const AttentionTile& tile) {
  // Chunks whose results are asked for at once, as registers allow.
  constexpr int kKept = kD / 32, kTogether = kD <= 128 && Shape::kThreads * Shape::kBlocks <= 512 ? 8 : 4;
  const int lane = threadIdx.x % 32, width = (op.dim + 7) / 8 * 8;
  const int first_chunk = chunks_of(tile.queries, tile.length, op.window).first;
  for (int row = static_cast<int>(threadIdx.x / 32); row < tile.queries * op.share; row += Shape::kWarps) {
    const int query = row / op.share, head = tile.kv_head * op.share + row % op.share;
    const int position = tile.length - tile.queries + query;
    const int first = first_key(position, op.window) / kChunkKeys - first_chunk;
    const int last = position / kChunkKeys - first_chunk;
    const int64_t at = ((int64_t{tile.sequence} * op.split_queries + query) * op.heads + head) * op.slots;
    float out[kKept], largest = 0, sum = 0, next[kTogether][kKept];
    const auto load = [&](int chunk) {
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const float* from = op.split_out + (at + chunk + j) * width + lane;
#pragma unroll
        for (int k = 0; k < kKept; ++k) {
          const bool there = chunk + j <= last && lane + 32 * k < op.dim;
          next[j][k] = there ? __ldcg(from + 32 * k) : 0.0f;
        }
      }
    };
    load(first);
    for (int base = first; base <= last; base += 32) {
      // Each lane has one chunk's largest score, and what that makes of the ones before and of itself.
      const bool mine = base + lane <= last;
      const float here = mine ? __ldcg(op.split_largest + at + base + lane) : -INFINITY;
      const float own_sum = mine ? __ldcg(op.split_sum + at + base + lane) : 0.0f;
      float until = base == first ? here : fmaxf(largest, here);
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(kAllLanes, until, step);
        if (lane >= step) until = fmaxf(other, until);
      }
      float earlier = __shfl_up_sync(kAllLanes, until, 1);
      if (lane == 0) earlier = base == first ? here : largest;
      const Merge merge = merge_of(earlier, here);
      const int count = min(32, last - base + 1);
      for (int i = 0; i < count; i += kTogether) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          if (i + j >= count) break;
          const float before = __shfl_sync(kAllLanes, merge.before, i + j);
          const float after = __shfl_sync(kAllLanes, merge.after, i + j);
          const float added = __shfl_sync(kAllLanes, own_sum, i + j);
          const bool begins = base + i + j == first;
          sum = begins ? added : fmaf(added, after, sum * before);
#pragma unroll
          for (int k = 0; k < kKept; ++k) {
            out[k] = begins ? next[j][k] : fmaf(next[j][k], after, out[k] * before);
          }
        }
        load(base + i + kTogether);
      }
      largest = __shfl_sync(kAllLanes, until, count - 1);
    }
    float* to = op.out + (tile.first_query_row + query) * op.out_token + head * op.out_head;
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (lane + 32 * k < op.dim) to[lane + 32 * k] = out[k] / sum;
    }
  }
}

// What the warps of a block that compute do with an item whose chunk was kept: take a ticket of its sequence
// and key/value head at once, and look a while later whether it was the last one, so that nobody waits for it
// to come.
template <class Shape, int kD>
class ChunkMerger {
 public:
  __device__ explicit ChunkMerger(const AttentionArguments& op) : op_(op) {}

  // The item of `tile`, all of whose rows were kept.
  __device__ void take_ticket(const AttentionTile& tile) {
    wait_for_others();  // all is kept, and all have read what there was of the item before
    pending_ = true;
    if (threadIdx.x != 0) return;
    kept()->tile = tile;
    ticket_ = add_released(ticket(tile), 1);
  }
  // Merges the chunks of the item before where this one's was the last.
  __device__ void finish() {
    if (!pending_) return;
    pending_ = false;
    if (threadIdx.x == 0) {
      const AttentionTile& tile = kept()->tile;
      const auto chunks = static_cast<unsigned>(chunks_of(tile.queries, tile.length, op_.window).count);
      kept()->is_last = ticket_ == chunks - 1;
      if (kept()->is_last) {
        acquire();
        *ticket(tile) = 0;
      }
    }
    wait_for_others();
    if (kept()->is_last) merge_chunks<Shape, kD>(op_, kept()->tile);
  }

 private:
  struct Kept {
    AttentionTile tile;
    bool is_last;
  };
  static_assert(sizeof(Kept) <= 64);

  __device__ static Kept* kept() {
    return reinterpret_cast<Kept*>(shared_memory<unsigned char>() + Shape::kMergeAt);
  }
  __device__ static void wait_for_others() { barrier_sync(Shape::kBarrier, 32 * Shape::kWarps); }
  __device__ unsigned* ticket(const AttentionTile& tile) const {
    return op_.tickets + int64_t{tile.sequence} * op_.kv_heads + tile.kv_head;
  }

  const AttentionArguments& op_;
  unsigned ticket_ = 0;  // thread 0's
  bool pending_ = false;
};

}  // namespace qiao::cuda
