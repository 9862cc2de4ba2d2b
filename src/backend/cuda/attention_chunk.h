// Eight warps that take chunks of keys for the same 16 rows together: attention_kernel.h has the plan.
#pragma once

#include "backend/cuda/attention_walk.h"
#include "backend/cuda/attention_warp.h"

namespace qiao::cuda {

// A step: each warp has one of AttentionShape's blocks of keys. In shared memory lie its keys and values, the
// queries, the rows' weights, and of each block its largest score and its lanes' sums.
template <template <int> class Kind, int kD>
struct ChunkShape {
  using Elements = Kind<kD>;
  // F32's products of small rows take more instructions than bytes: more, smaller blocks of 168 registers.
  static constexpr bool kSmall = kD <= 64 || (Elements::kBytes == 1 && kD <= 128);
  static constexpr int kWarps = Elements::kWeightBytes == 4 && kSmall ? 4 : 8;
  static constexpr int kBlock = AttentionShape<Kind, kD>::kBlock, kStep = kWarps * kBlock;
  static constexpr int kWeightPitch = kStep + 8;  // weights
  static constexpr int kValuesAt = kStep * Elements::kKeyPitch;
  static constexpr int kQueriesAt = kValuesAt + kStep * Elements::kValuePitch;
  static constexpr int kWeightsAt = kQueriesAt + Elements::kQueryBytes;
  static constexpr int kLargestAt = kWeightsAt + kWarpRows * kWeightPitch * Elements::kWeightBytes;
  static constexpr int kSumsAt = kLargestAt + kWarps * kWarpRows * 4;
  static constexpr int kSharedBytes = kSumsAt + kWarps * kWarpRows * 4 * 4;
  static_assert(kChunkKeys % kStep == 0);
  // An SM's, by Hopper's 228 KB, of which a block takes two besides; a thread has 128 registers or more,
  // more in F32's products of eight warps.
  static constexpr bool kWide = Elements::kWeightBytes == 4 && kWarps == 8;
  static constexpr int kFit = 228 * 1024 / (kSharedBytes + 2048), kMost = kWarps == 4 ? 3 : kWide ? 1 : 2;
  static constexpr int kBlocks = kFit < kMost ? kFit : kMost;
};

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
  using Walk = ChunkWalk<Shape::kStep>;

  // Asks for the first step's keys and values and the first rows' queries.
  __device__ static void begin(const AttentionArguments& op, const Walk& walk) {
    const KeyRow row = own_row(walk);
    copy_keys(op, row, true);
    copy_values(op, row, true);
    load_queries(op, walk.tile());
    __syncthreads();
  }

  __device__ AttentionChunk(const AttentionArguments& op, const AttentionTile& tile)
      : Rows(op, tile, 0, 1, static_cast<int>(threadIdx.x / 32) * kOutTiles),
        shared_(shared_memory<unsigned char>()),
        queries_(shared_ + Shape::kQueriesAt),
        largest_of_(reinterpret_cast<float*>(shared_ + Shape::kLargestAt)),
        sums_(reinterpret_cast<float*>(shared_ + Shape::kSumsAt)) {}

  // All steps of the tile; the walk is then at what comes after it, which is on its way.
  __device__ void run(Walk& walk) {
    Rows::set_scale(queries_);
    Rows::start_chunk();
    for (bool more = true; more;) {
      const int key = walk.key(), end = walk.end();
      more = walk.advance();
      const KeyRow row = own_row(walk);
      float scores[kTiles][4];
      copy_async_wait<1>();  // own keys
      __syncwarp();
      const bool any = key + warp_ * kBlock < end && key + (warp_ + 1) * kBlock > block_.first;
      if (any) multiply_keys(key + warp_ * kBlock, scores);
      __syncwarp();
      copy_keys(op_, row, walk.there());
      weigh(scores, any);
      if (!more && walk.there()) load_queries(op_, walk.tile());  // all warps have multiplied these
      copy_async_wait<1>();                                       // own values
      __syncthreads();
      add_values(key, end);
      __syncthreads();
      copy_values(op_, row, walk.there());
      if (!more || (key + Shape::kStep) % kChunkKeys == 0) Rows::finish_chunk(key / kChunkKeys, !more);
    }
  }

 private:
  // Of the key of the walk's step that this lane looks up.
  __device__ static KeyRow own_row(const Walk& walk) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    return lane < kBlock ? walk.row(warp * kBlock + lane) : KeyRow{nullptr, 0};
  }
  __device__ static void copy_keys(const AttentionArguments& op, const KeyRow& row, bool wanted) {
    copy(op, shared_memory<unsigned char>() + threadIdx.x / 32 * kBlock * Elements::kKeyPitch,
         Elements::kKeyPitch, row.at, 0, row.scale, wanted);
  }
  __device__ static void copy_values(const AttentionArguments& op, const KeyRow& row, bool wanted) {
    copy(
        op,
        shared_memory<unsigned char>() + Shape::kValuesAt + threadIdx.x / 32 * kBlock * Elements::kValuePitch,
        Elements::kValuePitch, row.at, op.values_offset, row.scale + 4 * op.page_tokens, wanted);
  }
  // Starts the copies of this warp's rows, `offset` bytes behind what each lane names, and their scales,
  // `scale` bytes behind it; zeros for null. Always a group, which is empty where nothing is `wanted`.
  __device__ static void copy(const AttentionArguments& op, unsigned char* rows, int pitch,
                              const unsigned char* row, int64_t offset, int64_t scale, bool wanted) {
    constexpr int kVectors = Elements::kVectors, kTogether = Elements::kVectorsTogether;
    const int lane = threadIdx.x % 32, vectors = static_cast<int>(op.row_bytes / 16);
    const int until = ceil_div(vectors, kTogether) * kTogether;
    const unsigned named = __ballot_sync(kAllLanes, row != nullptr);
    const auto own = static_cast<unsigned long long>(
        reinterpret_cast<uintptr_t>((row != nullptr ? row : op.pages) + offset));
    // Through a shuffle: else the compiler works out where shared memory lies before each copy.
    rows = reinterpret_cast<unsigned char*>(static_cast<uintptr_t>(
        __shfl_sync(kAllLanes, static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(rows)), 0)));
    if constexpr (Elements::kScales == RowScales::kOne) {
      if (wanted && lane < kBlock) {
        copy_async<4>(rows + lane * pitch + kD, row != nullptr ? row + scale : op.pages, row != nullptr);
      }
    }
    if constexpr (32 % kVectors == 0) {  // a lane has the same column of each row
      const int first_row = lane / kVectors, vector = lane % kVectors;
      const unsigned there = vector < vectors ? named >> first_row : 0;
      rows += first_row * pitch + 16 * vector;
#pragma unroll
      for (int at = 0; at < kBlock; at += 32 / kVectors) {
        const unsigned long long from = __shfl_sync(kAllLanes, own, at + first_row);
        if (!wanted || vector >= until) continue;
        copy_async<16>(rows + at * pitch, reinterpret_cast<const unsigned char*>(from) + 16 * vector,
                       (there >> at & 1) != 0);
      }
    } else {
#pragma unroll
      for (int first = 0; first < kBlock * kVectors; first += 32) {
        const int item = first + lane, vector = item % kVectors, at = item / kVectors;
        const unsigned long long from = __shfl_sync(kAllLanes, own, min(at, kBlock - 1));
        if (!wanted || item >= kBlock * kVectors || vector >= until) continue;
        const bool scales = Elements::kScales == RowScales::kBlocks && vector == vectors - 1;
        const int to = scales ? kD : 16 * vector;
        copy_async<16>(rows + at * pitch + to, reinterpret_cast<const unsigned char*>(from) + 16 * vector,
                       (named >> at & 1) != 0 && vector < vectors);
      }
    }
    copy_async_commit();
  }

  __device__ static void load_queries(const AttentionArguments& op, const AttentionTile& tile) {
    const int rows = tile.queries * op.share;
#pragma unroll
    for (int i = 0; i < kWarpRows / kWarps; ++i) {
      const int at = static_cast<int>(threadIdx.x / 32) + i * kWarps, row = tile.tile * kWarpRows + at;
      const float* from = nullptr;
      if (row < rows) {
        const int query = query_of(op, tile, row);
        from = op.q + (tile.first_query_row + query) * op.q_token +
               (tile.kv_head * op.share + row - query * op.share) * op.q_head;
      }
      Elements::store_query(shared_memory<unsigned char>() + Shape::kQueriesAt, at, from, op.dim);
    }
  }

  // The scores of the warp's own keys, from `key` on.
  __device__ void multiply_keys(int key, float (&scores)[kTiles][4]) {
    Elements::template multiply_keys<kTiles>(queries_, shared_ + warp_ * kBlock * Elements::kKeyPitch,
                                             op_.dim, lower_rows_, scores);
    Rows::template shape_scores<kTiles>(key, scores);
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
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int v = 0; v < kWarps; ++v) factor_[v][i] = 1.0f;
      if (i == 1 && !lower_rows_) break;
      const int row = lane_ / 4 + 8 * i;
      float own_shift = 0;
#pragma unroll
      for (int v = 0; v < kWarps; ++v) {
        const float most = scale_of(largest_[i], largest_of_[v * kWarpRows + row]);
        const float shift = most == -INFINITY ? 0.0f : most;
        if (most != largest_[i]) factor_[v][i] = exp2_flushed(largest_[i] - shift);
        largest_[i] = most;
        if (v == warp_) own_shift = shift;
      }
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

  __device__ void add_values(int key, int end) {
#pragma unroll
    for (int v = 0; v < kWarps; ++v) {
      if (key + v * kBlock >= end) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (i == 1 && !lower_rows_) break;
        sum_[i] = fmaf(sum_[i], factor_[v][i], sums_[(v * kWarpRows + lane_ / 4 + 8 * i) * 4 + lane_ % 4]);
      }
      Rows::rescale(factor_[v]);
#pragma unroll
      for (int k = 0; k < kBlock / Elements::kDepth; ++k) {
        typename Elements::Weights weights;
        Elements::load_weights(shared_ + Shape::kWeightsAt, Shape::kWeightPitch,
                               v * kBlock + k * Elements::kDepth, lower_rows_, weights);
        Elements::template add_values<kOutTiles>(
            shared_ + Shape::kValuesAt + v * kBlock * Elements::kValuePitch, k, first_tile_, op_.dim,
            lower_rows_, weights, out_);
      }
    }
  }

  unsigned char *shared_, *queries_;
  float *largest_of_, *sums_;
  float factor_[kWarps][2];  // to each block of the step from the one before it
};

}  // namespace qiao::cuda
