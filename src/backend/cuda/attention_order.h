// Which keys meet which queries, and when: one order for attention over pages and over packed rows, so that
// causal results are the same bits. A query walks the keys it sees in blocks, aligned to key 0, with one
// online softmax for each chunk of kChunkKeys; chunks are merged in ascending order.
#pragma once

#include "backend/cuda/kernel.h"

namespace qiao::cuda {

inline constexpr int kChunkKeys = 256;  // a multiple of every block
inline constexpr int kWarpRows = 16;    // queries × heads: the tensor cores' rows
inline constexpr int kMostWarps = 4;    // of a block of attention_tiles

// The first key that a query at this position sees. window 0: unlimited.
__host__ __device__ inline int first_key(int position, int window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

// Chunks of keys that a sequence's queries, its last ones, see.
struct Chunks {
  int first, count;
};
__host__ __device__ inline Chunks chunks_of(int queries, int length, int window) {
  const int first = first_key(length - queries, window) / kChunkKeys;
  return {first, (length - 1) / kChunkKeys + 1 - first};
}

// Scores are kept times this, so that weights are powers of two.
inline constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// exp(x), in base 2; 0 where it would be no normal number.
__device__ inline float exp_of(float x) { return exp2_flushed(x * kLog2E); }

// What a chunk's weights are scaled to once a block of keys has come, `most` its largest score: what it was
// (-infinity: nothing yet), unless weights would come to more than 2^kMostWeight. So what is summed up is
// scaled anew for few blocks after the first (FlashAttention-4's rule), and some weight is 1 or more. A sum's
// logarithm errs by a unit in the last place, 8 u where it is of up to 2^11, for two keys or more: inside
// gamma_(2n+16) (ops/attention_varlen.h).
inline constexpr float kMostWeight = 8;
__device__ inline float scale_of(float was, float most) { return most > was + kMostWeight ? most : was; }

// What two runs of keys with these largest scores weigh in what they sum to.
struct Merge {
  float largest, before, after;  // the last two: factors
};
__device__ inline Merge merge_of(float before, float after) {
  const float largest = fmaxf(before, after);
  const float shift = largest == -INFINITY ? 0.0f : largest;
  return {largest, exp2_flushed(before - shift), exp2_flushed(after - shift)};
}

// Where sequences' queries begin, and how long they are; null: as many keys as queries.
struct SequenceSizes {
  const int32_t *starts, *lengths;
  int count;
};
// A tile: of which sequence, the how manieth of its `count`, and what that sequence is.
struct FoundTile {
  int sequence, tile, count;
  int first_query, queries, length;
};
// Finds tiles among those of all sequences, of which one with so many has tiles(queries, length). Each warp
// looks for itself: a lane keeps one of 32 sequences, so who asks for one tile after the other, ascending,
// reads each sequence once.
template <class Tiles>
class TileFinder {
 public:
  __device__ TileFinder(const SequenceSizes& sizes, const Tiles& tiles) : sizes_(sizes), tiles_(tiles) {
    look_at(0);
  }
  // Tile `wanted`; false where there are fewer.
  __device__ bool find(int wanted, FoundTile* found) {
    for (; base_ < sizes_.count; look_at(base_ + 32)) {
      const int target = wanted - before_;
      const unsigned past = __ballot_sync(kAllLanes, until_ > target);
      if (past != 0) {
        const int first = __ffs(static_cast<int>(past)) - 1;
        found->sequence = base_ + first;
        found->count = __shfl_sync(kAllLanes, count_, first);
        found->tile = target - (__shfl_sync(kAllLanes, until_, first) - found->count);
        found->first_query = __shfl_sync(kAllLanes, start_, first);
        found->queries = __shfl_sync(kAllLanes, queries_, first);
        found->length = __shfl_sync(kAllLanes, length_, first);
        return true;
      }
      before_ += __shfl_sync(kAllLanes, until_, 31);
    }
    return false;
  }

 private:
  // Sequences from `base` on.
  __device__ void look_at(int base) {
    base_ = base;
    if (base >= sizes_.count) return;
    const int lane = threadIdx.x % 32, own = min(base + lane, sizes_.count - 1);
    start_ = sizes_.starts[own], queries_ = sizes_.starts[own + 1] - start_;
    length_ = sizes_.lengths == nullptr ? queries_ : sizes_.lengths[own];
    count_ = base + lane < sizes_.count ? tiles_(queries_, length_) : 0;
    until_ = count_;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int more = __shfl_up_sync(kAllLanes, until_, step);
      if (lane >= step) until_ += more;
    }
  }

  SequenceSizes sizes_;
  Tiles tiles_;
  int base_ = 0, before_ = 0;  // how many tiles those before the 32 have
  int start_ = 0, queries_ = 0, length_ = 0, count_ = 0, until_ = 0;
};
template <class Tiles>
__device__ inline bool find_tile(int wanted, const SequenceSizes& sizes, const Tiles& tiles,
                                 FoundTile* found) {
  return TileFinder<Tiles>(sizes, tiles).find(wanted, found);
}

// Tiles of so many rows each.
__host__ __device__ inline int tiles_of(int rows, int tile_rows) {
  return (rows + tile_rows - 1) / tile_rows;
}
// At most so many tiles have `rows` rows of S sequences.
inline unsigned most_tiles(int64_t rows, int64_t sequences, int tile_rows) {
  return static_cast<unsigned>(rows / tile_rows + sequences);
}
// Warps of a block for sequences of so many rows in the mean.
inline int warps_for(int64_t rows, int64_t sequences) {
  const int64_t tiles = ceil_div(ceil_div(rows, sequences), kWarpRows);
  return static_cast<int>(tiles < kMostWarps ? tiles : kMostWarps);
}
// As many as a block's shared memory holds: all four on Hopper. Who has how many rows shows in no result.
template <class Shape>
int warps_that_fit(int wanted, int most_shared_bytes) {
  while (wanted > 1 && Shape::shared_bytes(wanted) > most_shared_bytes) --wanted;
  return wanted;
}

}  // namespace qiao::cuda
