// The merging of chunks that were computed apart: by the block that was the last to finish one of its
// sequence and key/value head; a warp a row, chunks in ascending order, the same steps as finish_chunk's.
#pragma once

#include "backend/cuda/attention_arguments.h"

namespace qiao::cuda {

// In all threads of a block: whether all `count` chunks are there, this block's being the last.
__device__ inline bool is_last_chunk(const AttentionArguments& op, int sequence, int kv_head, int count) {
  return last_to_come(op.tickets + int64_t{sequence} * op.kv_heads + kv_head, static_cast<unsigned>(count));
}

// The rows of a sequence's queries for one key/value head; kD: heads' most.
template <int kD>
__device__ inline void merge_chunks(const AttentionArguments& op, int sequence, int kv_head,
                                    int first_query_row, int queries, int length) {
  constexpr int kKept = kD / 32, kTogether = kD <= 128 ? 8 : 4;  // chunks whose results are asked for at once
  const int lane = threadIdx.x % 32, width = (op.dim + 7) / 8 * 8;
  const int first_chunk = chunks_of(queries, length, op.window).first;
  for (int row = static_cast<int>(threadIdx.x / 32); row < queries * op.share;
       row += static_cast<int>(blockDim.x / 32)) {
    const int query = row / op.share, head = kv_head * op.share + row % op.share;
    const int position = length - queries + query;
    const int first = first_key(position, op.window) / kChunkKeys - first_chunk;
    const int last = position / kChunkKeys - first_chunk;
    const int64_t at = ((int64_t{sequence} * op.split_queries + query) * op.heads + head) * op.slots;
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
    float* to = op.out + (first_query_row + query) * op.out_token + head * op.out_head;
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (lane + 32 * k < op.dim) to[lane + 32 * k] = out[k] / sum;
    }
  }
}

}  // namespace qiao::cuda
