// Eight warps (or four) that compute chunks of keys for the same 16 rows together: attention_kernel.h has the
// plan.
#pragma once

#include "backend/cuda/attention_merge.h"

namespace qiao::cuda {

template <template <int> class Kind, int kD>
class AttentionChunk : AttentionRows<Kind<kD>, kD / 8 / ChunkShape<Kind, kD>::kWarps> {
  using Shape = ChunkShape<Kind, kD>;
  using Elements = typename Shape::Elements;
  static constexpr int kWarps = Shape::kWarps, kBlock = Shape::kBlock, kTiles = kBlock / 8;
  static constexpr int kOutTiles = kD / 8 / kWarps;
  using Rows = AttentionRows<Kind<kD>, kOutTiles>;
  using Rows::lower_rows_, Rows::block_, Rows::out_, Rows::largest_, Rows::sum_;
  using Rows::op_, Rows::tile_, Rows::lane_, Rows::warp_, Rows::first_row_, Rows::first_tile_;

 public:
  __device__ AttentionChunk(const AttentionArguments& op, const ChunkTiles<Shape>& tiles)
      : Rows(op, tiles.tile()->rows, 0, 1, static_cast<int>(threadIdx.x / 32) * kOutTiles),
        shared_(shared_memory<unsigned char>()),
        span_(tiles.tile()->span),
        tiles_(tiles),
        largest_of_(reinterpret_cast<float*>(shared_ + Shape::kLargestAt)),
        factors_(reinterpret_cast<float*>(shared_ + Shape::kFactorsAt)),
        sums_(reinterpret_cast<float*>(shared_ + Shape::kSumsAt)) {}

  // All steps of the tile.
  __device__ void run(ChunkParts<Shape>& parts) {
    Rows::set_scale(tiles_.queries());
    Rows::start_chunk();
    key_ = span_.key;
    for (bool more = true; more; key_ += Shape::kStep) {
      more = key_ + Shape::kStep < span_.end;
      float scores[kTiles][4];
      const bool any = is_seen(warp_ * kBlock, kBlock);
#pragma unroll 1
      for (int part = 0; part < 2; ++part) {
        if (!is_seen(part * Shape::kPartKeys, Shape::kPartKeys)) continue;
        parts.wait(parts.full());
        if (any && warp_ / Shape::kPartBlocks == part) multiply_keys(parts.rows(), scores);
        arrive_as_warp(parts.empty());
        parts.advance();
      }
      weigh(scores, any);
      wait_for_others();
      add_values(parts);
      if (!more || (key_ + Shape::kStep) % kChunkKeys == 0) Rows::finish_chunk(key_ / kChunkKeys, !more);
    }
  }

 private:
  __device__ bool is_seen(int at, int count) const {
    return KeySpan{span_.first, key_, span_.end}.any(at, count);
  }
  __device__ static void wait_for_others() { barrier_sync(Shape::kBarrier, 32 * kWarps); }

  // The scores of the warp's own keys, which lie in the part at `keys`.
  __device__ void multiply_keys(const unsigned char* keys, float (&scores)[kTiles][4]) {
    keys += warp_ % Shape::kPartBlocks * kBlock * Elements::kKeyPitch;
    Elements::template multiply_keys<kTiles>(tiles_.queries(), keys, op_.dim, lower_rows_, scores);
    Rows::template shape_scores<kTiles, false>(key_ + warp_ * kBlock, scores);
  }

  // The warp's scores to weights, scaled to the largest that rows had met by the end of its block; what the
  // blocks before it come to is scaled to theirs in turn.
  __device__ void weigh(float (&scores)[kTiles][4], bool any) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i == 1 && !lower_rows_) break;
      float most = -INFINITY;
      if (any) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) most = fmaxf(most, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      if (lane_ % 4 == 0) largest_of_[warp_ * kWarpRows + lane_ / 4 + 8 * i] = most;
    }
    // Others have then added the values before, whose weights and sums lie where this step's will.
    wait_for_others();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i == 1 && !lower_rows_) break;
      const int row = lane_ / 4 + 8 * i;
      float own_shift = 0, factor = 1;
#pragma unroll
      for (int v = 0; v < kWarps; ++v) {
        const float most = scale_of(largest_[i], largest_of_[v * kWarpRows + row]);
        if (v == warp_) {
          own_shift = most == -INFINITY ? 0.0f : most;
          if (most != largest_[i]) factor = exp2_flushed(largest_[i] - own_shift);
        }
        largest_[i] = most;
      }
      if (lane_ % 4 == 0) factors_[warp_ * kWarpRows + row] = factor;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        float2 pair = make_float2(0, 0);
        if (any) {
          sum += pair.x = exp2_flushed(scores[n][2 * i] - own_shift);
          sum += pair.y = exp2_flushed(scores[n][2 * i + 1] - own_shift);
        }
        Elements::store_weights(shared_ + Shape::kWeightsAt, Shape::kWeightPitch, row,
                                warp_ * kBlock + 8 * n + 2 * (lane_ % 4), pair);
      }
      sums_[(warp_ * kWarpRows + row) * 4 + lane_ % 4] = sum;
    }
  }

  __device__ void add_values(ChunkParts<Shape>& parts) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      if (!is_seen(part * Shape::kPartKeys, Shape::kPartKeys)) continue;
      parts.wait(parts.full());
#pragma unroll
      for (int block = 0; block < Shape::kPartBlocks; ++block) {
        const int v = part * Shape::kPartBlocks + block;
        if (is_seen(v * kBlock, kBlock)) add_block(v, parts.rows() + block * kBlock * Elements::kValuePitch);
      }
      arrive_as_warp(parts.empty());
      parts.advance();
    }
  }
  // Of block v of the step, whose values lie at `values`.
  __device__ void add_block(int v, const unsigned char* values) {
    float factor[2] = {1.0f, 1.0f};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i == 1 && !lower_rows_) break;
      const int at = v * kWarpRows + lane_ / 4 + 8 * i;
      factor[i] = factors_[at];
      sum_[i] = fmaf(sum_[i], factor[i], sums_[4 * at + lane_ % 4]);
    }
    Rows::rescale(factor);
#pragma unroll
    for (int k = 0; k < kBlock / Elements::kDepth; ++k) {
      typename Elements::Weights weights;
      Elements::load_weights(shared_ + Shape::kWeightsAt, Shape::kWeightPitch,
                             v * kBlock + k * Elements::kDepth, lower_rows_, weights);
      Elements::template add_values<kOutTiles>(values, k, first_tile_, op_.dim, lower_rows_, weights, out_);
    }
  }

  unsigned char* shared_;
  const KeySpan& span_;  // in shared memory, as the tile is
  const ChunkTiles<Shape>& tiles_;
  int key_ = 0;                           // the step's first
  float *largest_of_, *factors_, *sums_;  // factors: to each block of the step from the one before it
};

// By the warps of a block that compute: tile after tile that the others bring.
template <template <int> class Kind, int kD>
__device__ inline void use_parts(const AttentionArguments& op, unsigned count) {
  using Shape = ChunkShape<Kind, kD>;
  ChunkParts<Shape> parts(count, false);
  ChunkTiles<Shape> tiles(false);
  ChunkMerger<Shape, kD> merger(op);
  for (bool more = true; more; tiles.advance()) {
    tiles.wait(tiles.full());
    const ChunkTile& tile = *tiles.tile();
    more = tile.span.key < tile.span.end;
    if (more) AttentionChunk<Kind, kD>(op, tiles).run(parts);
    if (!more || tile.ends_item) merger.finish();
    if (more && tile.ends_item && tile.rows.slot >= 0) merger.take_ticket(tile.rows);
    arrive_as_warp(tiles.empty());
  }
}

}  // namespace qiao::cuda
