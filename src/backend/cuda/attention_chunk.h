// Four warps that take chunks of keys for the same 16 rows together: attention_kernel.h has the plan.
#pragma once

#include "backend/cuda/attention_warp.h"

namespace qiao::cuda {

// A step: each warp has one of AttentionShape's blocks of keys. In shared memory lie its keys and values, the
// queries, the rows' weights, and of each block its largest score and its lanes' sums.
template <template <int> class Kind, int kD>
struct ChunkShape {
  using Elements = Kind<kD>;
  static constexpr int kBlock = AttentionShape<Kind, kD>::kBlock, kStep = kMostWarps * kBlock;
  static constexpr int kWeightPitch = kStep + 8;  // weights
  static constexpr int kValuesAt = kStep * Elements::kKeyPitch;
  static constexpr int kQueriesAt = kValuesAt + kStep * Elements::kValuePitch;
  static constexpr int kWeightsAt = kQueriesAt + Elements::kQueryBytes;
  static constexpr int kLargestAt = kWeightsAt + kWarpRows * kWeightPitch * Elements::kWeightBytes;
  static constexpr int kSumsAt = kLargestAt + kMostWarps * kWarpRows * 4;
  static constexpr int kSharedBytes = kSumsAt + kMostWarps * kWarpRows * 4 * 4;
  // An SM's, by Hopper's 228 KB, of which a block takes two besides; three leave each thread 168 registers.
  static constexpr int kBlocks = kD <= 128 && 3 * (kSharedBytes + 2048) <= 228 * 1024 ? 3 : 2;
};

template <template <int> class Kind, int kD>
class AttentionChunk : AttentionRows<Kind<kD>, kD / 8 / kMostWarps> {
  using Shape = ChunkShape<Kind, kD>;
  using Elements = typename Shape::Elements;
  static constexpr int kBlock = Shape::kBlock, kTiles = kBlock / 8, kOutTiles = kD / 8 / kMostWarps;
  using Rows = AttentionRows<Kind<kD>, kOutTiles>;
  using Rows::lower_rows_, Rows::block_, Rows::out_, Rows::largest_, Rows::sum_;
  using Rows::op_, Rows::tile_, Rows::lane_, Rows::warp_, Rows::first_row_, Rows::first_tile_;

 public:
  __device__ AttentionChunk(const AttentionArguments& op, const AttentionTile& tile)
      : Rows(op, tile, 0, 1, static_cast<int>(threadIdx.x / 32) * kOutTiles),
        shared_(shared_memory<unsigned char>()),
        largest_of_(reinterpret_cast<float*>(shared_ + Shape::kLargestAt)),
        sums_(reinterpret_cast<float*>(shared_ + Shape::kSumsAt)) {}

  __device__ void run() {
    const int begin = max(block_.first, tile_.first_chunk * kChunkKeys) / Shape::kStep * Shape::kStep;
    const int end = min(block_.end, (tile_.first_chunk + tile_.chunks) * kChunkKeys);
    if (begin >= end) return;
    const unsigned char* row = own_row(begin, end);
    copy_keys(row);
    copy_values(row);
    load_queries();
    __syncthreads();
    Rows::set_scale(shared_ + Shape::kQueriesAt);
    Rows::start_chunk();
    for (int key = begin; key < end; key += Shape::kStep) {
      const int next = key + Shape::kStep;
      row = own_row(next, end);
      float scores[kTiles][4];
      copy_async_wait<1>();  // own keys
      __syncwarp();
      const bool any = key + warp_ * kBlock < end && key + (warp_ + 1) * kBlock > block_.first;
      if (any) multiply_keys(key + warp_ * kBlock, scores);
      __syncwarp();
      copy_keys(row);
      weigh(scores, any);
      copy_async_wait<1>();  // own values
      __syncthreads();
      add_values(key, end);
      __syncthreads();
      copy_values(row);
      if (next % kChunkKeys == 0 || next >= end) Rows::finish_chunk(key / kChunkKeys, next >= end);
    }
    copy_async_wait<0>();
  }

 private:
  // Of the key that this lane looks up of the step from `key` on.
  __device__ const unsigned char* own_row(int key, int end) const {
    return lane_ < kBlock ? Rows::key_row(key + warp_ * kBlock + lane_, end) : nullptr;
  }
  __device__ void copy_keys(const unsigned char* row) {
    copy(shared_ + warp_ * kBlock * Elements::kKeyPitch, Elements::kKeyPitch, row, 0);
  }
  __device__ void copy_values(const unsigned char* row) {
    copy(shared_ + Shape::kValuesAt + warp_ * kBlock * Elements::kValuePitch, Elements::kValuePitch, row,
         op_.values_offset);
  }
  // Starts the copies of this warp's rows, `offset` bytes behind what each lane names; zeros for null. Always
  // a group.
  __device__ void copy(unsigned char* rows, int pitch, const unsigned char* row, int64_t offset) {
    const int vectors = static_cast<int>(op_.row_bytes / 16);
    const auto own = static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(row));
#pragma unroll
    for (int first = 0; first < kBlock * Elements::kVectors; first += 32) {
      const int item = first + lane_, vector = item % Elements::kVectors;
      const unsigned long long from = __shfl_sync(kAllLanes, own, min(item / Elements::kVectors, kBlock - 1));
      constexpr int kTogether = Elements::kVectorsTogether;
      if (item >= kBlock * Elements::kVectors || vector >= ceil_div(vectors, kTogether) * kTogether) continue;
      const bool there = from != 0 && vector < vectors;
      const unsigned char* source = op_.pages;
      if (there) source = reinterpret_cast<const unsigned char*>(from) + offset + 16 * vector;
      // Q8_0's scales come behind the numbers.
      const int to = Elements::kBytes == 1 && vector == vectors - 1 ? kD : 16 * vector;
      copy_async<16>(rows + item / Elements::kVectors * pitch + to, source, there);
    }
    copy_async_commit();
  }

  __device__ void load_queries() {
    const int rows = tile_.queries * op_.share;
#pragma unroll
    for (int i = 0; i < kWarpRows / kMostWarps; ++i) {
      const int at = warp_ + i * kMostWarps, row = first_row_ + at;
      Elements::store_query(shared_ + Shape::kQueriesAt, at, row < rows ? Rows::query(row) : nullptr,
                            op_.dim);
    }
  }

  // The scores of the warp's own keys, from `key` on.
  __device__ void multiply_keys(int key, float (&scores)[kTiles][4]) {
    Elements::template multiply_keys<kTiles>(shared_ + Shape::kQueriesAt,
                                             shared_ + warp_ * kBlock * Elements::kKeyPitch, op_.dim,
                                             lower_rows_, scores);
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
      for (int v = 0; v < kMostWarps; ++v) factor_[v][i] = 1.0f;
      if (i == 1 && !lower_rows_) break;
      const int row = lane_ / 4 + 8 * i;
      float own_shift = 0;
#pragma unroll
      for (int v = 0; v < kMostWarps; ++v) {
        const float most = fmaxf(largest_[i], largest_of_[v * kWarpRows + row]);
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
    for (int v = 0; v < kMostWarps; ++v) {
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

  unsigned char* shared_;
  float *largest_of_, *sums_;
  float factor_[kMostWarps][2];  // to each block of the step from the one before it
};

}  // namespace qiao::cuda
