// What passes between the warps of a block of attention_chunks that bring keys, values and queries and those
// that compute: attention_kernel.h has the plan.
#pragma once

#include <algorithm>

#include "backend/cuda/attention_rows.h"
#include "backend/cuda/attention_warp.h"

namespace qiao::cuda {

// Blocks of an SM, and parts of keys or values that each has room for: as many blocks, `most` at most, as
// have `wanted` parts, or one. Each takes 1 KB of the SM's shared memory besides.
struct ChunkRoom {
  int blocks, parts;
};
constexpr ChunkRoom chunk_room(int most, int wanted, int block_shared_bytes, int fixed_bytes,
                               int part_bytes) {
  for (int blocks = most;; --blocks) {
    const int room = (block_shared_bytes + 1024) / blocks - 1024 - fixed_bytes;
    if (room / part_bytes >= wanted || blocks == 1) return {blocks, room / part_bytes};
  }
}

// A step: each warp that computes has one of AttentionShape's blocks of keys. Keys and values come in parts,
// half a step's keys or values each. In shared memory lie tiles, each 16 rows of queries and what they meet,
// two in turn; the rows' weights; of each block its largest score, its factor and its lanes' sums; arrivals;
// and as many parts as there is room for, in turn.
template <template <int> class Kind, int kD>
struct ChunkShape {
  using Elements = Kind<kD>;
  // F32's products of small rows take more instructions than bytes: more, smaller blocks.
  static constexpr bool kSmall = kD <= 64 || (Elements::kBytes == 1 && kD <= 128);
  static constexpr int kWarps = Elements::kWeightBytes == 4 && kSmall ? 4 : 8;  // that compute
  static constexpr int kBlock = AttentionShape<Kind, kD>::kBlock, kStep = kWarps * kBlock;
  static constexpr int kPartBlocks = kWarps / 2, kPartKeys = kPartBlocks * kBlock;
  static constexpr int kPartBytes = kPartKeys * std::max(Elements::kKeyPitch, Elements::kValuePitch);
  static constexpr int kMostParts = 16, kWantedParts = 4;
  static constexpr int kWeightPitch = kStep + 8;  // weights
  static constexpr int kBarrier = 1;              // of the warps that compute

  static constexpr int kTileBytes = Elements::kQueryBytes + 64;
  static constexpr int kWeightsAt = 2 * kTileBytes;
  static constexpr int kLargestAt = kWeightsAt + kWarpRows * kWeightPitch * Elements::kWeightBytes;
  static constexpr int kFactorsAt = kLargestAt + kWarps * kWarpRows * 4;
  static constexpr int kSumsAt = kFactorsAt + kWarps * kWarpRows * 4;
  static constexpr int kMergeAt = kSumsAt + kWarps * kWarpRows * 4 * 4;
  static constexpr int kArrivalsAt = kMergeAt + 64;
  static constexpr int kPartsAt = kArrivalsAt + 2 * (2 + kMostParts) * 8;
  static_assert(kChunkKeys % kStep == 0 && kTileBytes % 16 == 0 && kPartsAt % 16 == 0 &&
                kPartBytes % 16 == 0);

  // Of an SM, by Hopper's shared memory: two parts or more are on their way while others are computed.
  static constexpr bool kWide = Elements::kWeightBytes == 4 && kWarps == 8;
  static constexpr int kMost = kWarps == 4 ? 3 : kWide ? 1 : 2;
  static constexpr int kBlocks = chunk_room(kMost, kWantedParts, 227 * 1024, kPartsAt, kPartBytes).blocks;
  // Warps that bring. A quarter of an SM's registers are for a quarter of its warps, rounded up: so a thread
  // has 168 with 12 warps on an SM, 128 with 15 (three blocks), 96 with 20 (two of eight warps that compute).
  static constexpr int kProducers = kBlocks == 3 ? 1 : kBlocks == 1 && kWarps == 8 ? 4 : 2;
  static constexpr int kThreads = 32 * (kWarps + kProducers);
};

// Which keys of the step from `key` on, a multiple of kStep, rows see: [first, end).
struct KeySpan {
  int first, key, end;
  // Whether any, or all, of `count` of them are seen, the step's `at`-th being the first.
  __device__ bool any(int at, int count) const { return key + at < end && key + at + count > first; }
  __device__ bool all(int at, int count) const { return key + at >= first && key + at + count <= end; }
};

// What those who compute are told of 16 rows: the keys that they meet, step after step from span.key on; none
// at all: nothing comes any more. `ends_item`: no rows of the same item follow.
struct ChunkTile {
  AttentionTile rows;
  KeySpan span;
  bool ends_item;
};
static_assert(sizeof(ChunkTile) <= 64);

// Of `parts` parts, or of two tiles, the one that is next: who brings waits until it is empty, who computes
// until it is full.
template <class Shape>
class ChunkParts {
 public:
  __device__ ChunkParts(unsigned parts, bool brings) : parts_(parts), next_(brings ? 1 : 0) {}
  __device__ unsigned char* rows() const {
    return shared_memory<unsigned char>() + Shape::kPartsAt + next_ / 2 * Shape::kPartBytes;
  }
  __device__ static uint64_t* arrivals() {
    return reinterpret_cast<uint64_t*>(shared_memory<unsigned char>() + Shape::kArrivalsAt) + 4;
  }
  __device__ uint64_t* full() const { return arrivals() + next_ / 2 * 2; }
  __device__ uint64_t* empty() const { return full() + 1; }
  __device__ void wait(uint64_t* until) const { wait_arrivals(until, next_ % 2); }
  __device__ void advance() {
    next_ += 2;
    if (next_ / 2 == parts_) next_ = next_ % 2 ^ 1;
  }

 private:
  unsigned parts_, next_;  // 2 * place + parity
};
template <class Shape>
class ChunkTiles {
 public:
  __device__ explicit ChunkTiles(bool brings) : next_(brings ? 2 : 0) {}
  __device__ unsigned char* queries() const {
    return shared_memory<unsigned char>() + next_ % 2 * Shape::kTileBytes;
  }
  __device__ ChunkTile* tile() const {
    return reinterpret_cast<ChunkTile*>(queries() + Shape::Elements::kQueryBytes);
  }
  __device__ static uint64_t* arrivals() {
    return reinterpret_cast<uint64_t*>(shared_memory<unsigned char>() + Shape::kArrivalsAt);
  }
  __device__ uint64_t* full() const { return arrivals() + next_ % 2 * 2; }
  __device__ uint64_t* empty() const { return full() + 1; }
  __device__ void wait(uint64_t* until) const { wait_arrivals(until, next_ / 2 % 2); }
  __device__ void advance() { ++next_; }

 private:
  unsigned next_;
};

// By all threads of a block, before any of them brings or waits.
template <class Shape>
__device__ inline void open_chunks(unsigned parts) {
  if (threadIdx.x == 0) {
    uint64_t* tiles = ChunkTiles<Shape>::arrivals();
    for (int i = 0; i < 2; ++i) {
      arrivals_init(tiles + 2 * i, Shape::kProducers), arrivals_init(tiles + 2 * i + 1, Shape::kWarps);
    }
    uint64_t* of_parts = ChunkParts<Shape>::arrivals();
    for (unsigned i = 0; i < parts; ++i) {
      arrivals_init(of_parts + 2 * i, 32 * Shape::kProducers);  // each lane's copies
      arrivals_init(of_parts + 2 * i + 1, Shape::kWarps);
    }
    arrivals_ready();
  }
  __syncthreads();
}

}  // namespace qiao::cuda
