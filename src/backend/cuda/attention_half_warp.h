// Prefill in products of 16 bits (FlashAttention-2's plan, Dao 2023, in attention_order.h's order). A block
// is kWarps warps of 16 rows each (queries × the heads that share a key/value head), whose queries, scores
// and results stay in registers; tiles of kKeys keys and values come by cp.async in kStages stages, one
// barrier a tile. Scores of a tile are made at once, weighed in blocks of the online softmax. D 128: 135 KB,
// one block an SM of 8 warps. Limit: ldmatrix, which brings each warp all keys and values (16 rows for 512
// bytes of them: three quarters of what mma.sync could take). For devices before Hopper, whose wgmma
// reads them from shared memory itself (attention_wgmma.h).
#pragma once

#include "backend/cuda/attention_half_rows.h"
#include "backend/cuda/attention_warp.h"

namespace qiao::cuda {

template <template <int> class Kind, int kD>
struct RoundedShape {
  using Elements = Kind<kD>;
  using Tile = typename Elements::Tile;
  static constexpr int kWarps = 8, kStages = 2, kKeys = 64;
  static constexpr int kBlock = AttentionShape<Kind, kD>::kBlock;  // of the online softmax
  static constexpr int kOutTiles = kD / 8;
  static constexpr int kKeyStage = kKeys * Elements::kKeyPitch;
  static constexpr int kStage = kKeyStage + kKeys * Elements::kValuePitch;
  // What comes in 8 bits is unpacked once for all warps.
  static constexpr bool kUnpacks = Elements::kBytes == 1;
  static constexpr int kUnpacked = kUnpacks ? kKeys * (Tile::kKeyPitch + Tile::kValuePitch) : 0;
  static constexpr int kEarlierAt = kStages * kStage + kUnpacked;
  static constexpr int kSharedBytes = kEarlierAt + kWarps * earlier_bytes<Kind, kD>();
  static_assert(kKeys % kBlock == 0 && kChunkKeys % kKeys == 0);
};

template <template <int> class Kind, int kD>
class RoundedWarp : RoundedRows<Kind, kD> {
  using Shape = RoundedShape<Kind, kD>;
  using Elements = typename Shape::Elements;
  using Tile = typename Shape::Tile;
  using Rows = RoundedRows<Kind, kD>;
  static constexpr int kBlock = Shape::kBlock, kTiles = kBlock / 8, kOutTiles = Shape::kOutTiles;
  static constexpr int kBlocks = Shape::kKeys / kBlock;
  using Rows::block_, Rows::warp_seen_, Rows::out_, Rows::queries_;
  using Rows::op_, Rows::lane_;

 public:
  __device__ RoundedWarp(const AttentionArguments& op, const AttentionTile& tile)
      : Rows(op, tile, Shape::kWarps, shared_memory<unsigned char>() + Shape::kEarlierAt),
        shared_(shared_memory<unsigned char>()) {}

  __device__ void run() {
    const int begin = max(block_.first, 0) / Shape::kKeys * Shape::kKeys, end = block_.end;
    if (begin >= end) return;
    KeyRow row = own_row(begin, end);
#pragma unroll
    for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
      copy(stage, row);
      row = own_row(begin + (stage + 1) * Shape::kKeys, end);
    }
    Rows::load_queries();
    Rows::start_chunk();
    int stage = 0;
    for (int key = begin; key < end; key += Shape::kKeys) {
      copy_async_wait<Shape::kStages - 2>();
      __syncthreads();  // the tile is there, and the one before it is read
      copy(stage == 0 ? Shape::kStages - 1 : stage - 1, row);
      row = own_row(key + Shape::kStages * Shape::kKeys, end);
      const int next = key + Shape::kKeys;
      const unsigned char* keys = shared_ + stage * Shape::kStage;
      if constexpr (Shape::kUnpacks) keys = unpack(keys);
      if (warp_seen_.first < next && warp_seen_.end > key) add_tile(keys, key);
      if (next % kChunkKeys == 0 || next >= end) Rows::finish(key / kChunkKeys, next >= end);
      stage = stage == Shape::kStages - 1 ? 0 : stage + 1;
    }
    copy_async_wait<0>();
  }

 private:
  // Lane l of the first few looks up the l-th row that this warp copies of the tile from `key` on.
  static constexpr int kAtOnce = 32 / Elements::kVectors;  // rows of a warp's copy
  static constexpr int kCopies = Shape::kKeys / (Shape::kWarps * kAtOnce);
  __device__ static int copied_row(int index) {
    return (index / kAtOnce * Shape::kWarps + static_cast<int>(threadIdx.x / 32)) * kAtOnce + index % kAtOnce;
  }
  __device__ KeyRow own_row(int key, int end) const {
    return lane_ < kCopies * kAtOnce ? Rows::key_row(key + copied_row(lane_), end) : KeyRow{nullptr, 0};
  }
  __device__ void copy(int stage, const KeyRow& row) {
    unsigned char* keys = shared_ + stage * Shape::kStage;
    const int vectors = static_cast<int>(op_.row_bytes / 16), vector = lane_ % Elements::kVectors;
    const auto own = static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(row.at));
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int index = i * kAtOnce + lane_ / Elements::kVectors;
      const unsigned long long from = __shfl_sync(kAllLanes, own, index);
      const bool there = from != 0 && vector < vectors;
      const unsigned char* source = op_.pages;
      if (there) source = reinterpret_cast<const unsigned char*>(from) + 16 * vector;
      unsigned char* to = keys + copied_row(index) * Elements::kKeyPitch + 16 * vector;
      copy_async<16>(to, source, there);
      copy_async<16>(to + Shape::kKeyStage, there ? source + op_.values_offset : source, there);
    }
    if constexpr (Elements::kScales == RowScales::kOne) {
      if (lane_ < kCopies * kAtOnce) {
        const bool there = row.at != nullptr;
        const unsigned char* source = there ? row.at + row.scale : op_.pages;
        unsigned char* to = keys + copied_row(lane_) * Elements::kKeyPitch + kD;
        copy_async<4>(to, source, there);
        copy_async<4>(to + Shape::kKeyStage, there ? source + 4 * op_.page_tokens : source, there);
      }
    }
    copy_async_commit();
  }

  // By all warps, which wait for each other: a stage as Tile reads it.
  __device__ const unsigned char* unpack(const unsigned char* stage) {
    unsigned char* tile = shared_ + Shape::kStages * Shape::kStage;
    const int thread = static_cast<int>(threadIdx.x);
    for (int item = thread; item < Shape::kKeys * kD / 16; item += 32 * Shape::kWarps) {
      const int row = item / (kD / 16), part = item % (kD / 16);
      uint4 first, second;
      Elements::unpack_keys(stage + row * Elements::kKeyPitch, part, first, second);
      auto* to = reinterpret_cast<uint4*>(tile + row * Tile::kKeyPitch + 32 * part);
      to[0] = first, to[1] = second;
      Elements::unpack_values(stage + Shape::kKeyStage + row * Elements::kValuePitch, part, first, second);
      to = reinterpret_cast<uint4*>(tile + Shape::kKeys * Tile::kKeyPitch + row * Tile::kValuePitch +
                                    32 * part);
      to[0] = first, to[1] = second;
    }
    __syncthreads();
    return tile;
  }

  __device__ void add_tile(const unsigned char* keys, int key) {
    float scores[kBlocks][kTiles][4];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[block][n][i] = 0;
      }
    }
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        Tile::template multiply_step<kTiles>(queries_[k], keys + block * kBlock * Tile::kKeyPitch, k,
                                             scores[block]);
      }
    }
    float factor[kBlocks][2];
    typename Elements::Weights weights[kBlocks][kTiles / 2];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      Rows::template shape_scores<kTiles>(key + block * kBlock, scores[block]);
      Rows::template weigh<kTiles>(scores[block], factor[block]);
#pragma unroll
      for (int k = 0; k < kTiles / 2; ++k) {
        Elements::take_weights(scores[block][2 * k], scores[block][2 * k + 1], weights[block][k]);
      }
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      Rows::rescale(factor[block]);
#pragma unroll
      for (int k = 0; k < kTiles / 2; ++k) {
        Tile::template add_values<kOutTiles>(
            keys + Shape::kKeys * Tile::kKeyPitch + block * kBlock * Tile::kValuePitch, k, 0, op_.dim, true,
            weights[block][k], out_);
      }
    }
  }

  unsigned char* shared_;
};

}  // namespace qiao::cuda
