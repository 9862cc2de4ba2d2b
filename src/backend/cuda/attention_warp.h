// What a warp of attention does: attention_kernel.h has the plan.
#pragma once

#include "backend/cuda/attention_arguments.h"
#include "backend/cuda/attention_elements.h"

namespace qiao::cuda {

// Sizes of blocks and of shared memory for heads of up to kD.
template <template <int> class Kind, int kD>
struct AttentionShape {
  using Elements = Kind<kD>;
  static constexpr int kRowBytes = kD * Elements::kBytes;
  static constexpr int kBlock = kRowBytes <= 256 && kD <= 128 ? 32 : kRowBytes <= 512 ? 16 : 8;
  static constexpr int kTiles = kBlock / 8;
  static constexpr int kKeyStage = kBlock * Elements::kKeyPitch;
  static constexpr int kStage = kKeyStage + kBlock * Elements::kValuePitch;
  static constexpr int kQueryPitch = kD + 8;                // floats
  static constexpr int kQueries = kWarpRows * kQueryPitch;  // of one part
  static constexpr int shared_bytes(int row_groups) {
    return 2 * kStage +
           (row_groups * 2 * kQueries + kTiles * kWarpRows * 8) * static_cast<int>(sizeof(float));
  }
};

// The rows of a block and what of the sequence they meet.
struct AttentionTile {
  int sequence, first_query_row, queries, length;
  int tile;                 // rows [tile * 16 * warps, …) of queries × share
  int first_chunk, chunks;  // that it walks
  int slot;                 // in the workspace, or -1: the result is whole
};

// kTogether: the block's kMostWarps warps share 16 rows; else each has its own.
template <template <int> class Kind, int kD, bool kTogether>
class AttentionWarp {
  using Shape = AttentionShape<Kind, kD>;
  using Elements = typename Shape::Elements;
  static constexpr int kBlock = Shape::kBlock, kTiles = Shape::kTiles;
  static constexpr int kOutTiles = kD / 8 / (kTogether ? kMostWarps : 1);
  static constexpr int kGroup = kOutTiles < 4 ? kOutTiles : 4;  // tiles of values that are read together
  static_assert(kTiles <= kMostWarps);                          // together each has a tile of keys, or none

 public:
  __device__ AttentionWarp(const AttentionArguments& op, const AttentionTile& tile)
      : op_(op),
        tile_(tile),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        kv_head_(blockIdx.y),
        shared_(shared_memory<unsigned char>()),
        first_tile_(kTogether ? warp_ * kOutTiles : 0) {
    const int groups = kTogether ? 1 : blockDim.x / 32, group = kTogether ? 0 : warp_;
    auto* floats = reinterpret_cast<float*>(shared_ + 2 * Shape::kStage);
    queries_ = floats + group * 2 * Shape::kQueries;
    exchange_ = floats + groups * 2 * Shape::kQueries;
    const int rows = tile.queries * op.share, block_row = tile.tile * groups * kWarpRows;
    first_row_ = block_row + group * kWarpRows;
    const int block_end = min(block_row + groups * kWarpRows, rows);
    const int warp_end = min(first_row_ + kWarpRows, rows);
    lower_rows_ = warp_end - first_row_ > 8;
    block_ = seen(block_row, block_end);
    warp_seen_ = seen(first_row_, warp_end);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row_ + lane_ / 4 + 8 * i;
      valid_[i] = row < rows;
      rows_[i] = seen(row, row < rows ? row + 1 : row);
    }
  }

  __device__ void run() {
    const int begin = max(block_.first, tile_.first_chunk * kChunkKeys) / kBlock * kBlock;
    const int end = min(block_.end, (tile_.first_chunk + tile_.chunks) * kChunkKeys);
    if (begin >= end) return;
    load_queries();
    clear_padding();
    Place place = locate(begin, end);
    issue(0, begin, place);
    place = locate(begin + kBlock, end);
    start_chunk();
    for (int key = begin, stage = 0; key < end; key += kBlock, stage ^= 1) {
      issue(stage ^ 1, key + kBlock < end ? key + kBlock : -1, place);
      place = locate(key + 2 * kBlock, end);
      copy_async_wait<1>();
      __syncthreads();
      if (warp_seen_.first < key + kBlock && warp_seen_.end > key) add_block(stage, key);
      const int next = key + kBlock;
      if (next % kChunkKeys == 0 || next >= end) finish_chunk(key / kChunkKeys, next >= end);
      __syncthreads();
    }
    copy_async_wait<0>();
  }

 private:
  // Keys [first, end) that some rows see; none: first >= end.
  struct Seen {
    int first, end;
  };
  __device__ Seen seen(int row, int end) const {
    if (row >= end) return {0x7fffffff, 0};
    if (!op_.causal) return {0, tile_.length};
    const int before = tile_.length - tile_.queries;
    return {first_key(before + row / op_.share, op_.window), before + (end - 1) / op_.share + 1};
  }
  __device__ int token(int row) const { return tile_.first_query_row + row / op_.share; }
  __device__ int head(int row) const { return kv_head_ * op_.share + row % op_.share; }

  __device__ void load_queries() {
    const int rows = tile_.queries * op_.share, width = (op_.dim + 7) / 8 * 8;
    for (int i = kTogether ? warp_ : 0; i < kWarpRows; i += kTogether ? kMostWarps : 1) {
      const int row = first_row_ + i;
      const float* from = op_.q + token(row) * op_.q_token + head(row) * op_.q_head;
      float* to = queries_ + i * Shape::kQueryPitch;
      for (int d = lane_; d < width; d += 32) {
        uint32_t high, low;
        split(row < rows && d < op_.dim ? from[d] : 0.0f, &high, &low);
        to[d] = __uint_as_float(high);
        to[Shape::kQueries + d] = __uint_as_float(low);
      }
    }
    if (!kTogether) __syncwarp();  // else a barrier follows before they are read
  }

  // Of packed rows, whose width may be no multiple of 8. Pages have zeros of their own.
  __device__ void clear_padding() {
    if (op_.table != nullptr || op_.dim % 8 == 0) return;
    if constexpr (Elements::kBytes == 4) {
      const int width = (op_.dim + 7) / 8 * 8 - op_.dim;
      for (int i = threadIdx.x; i < 4 * kBlock * width; i += blockDim.x) {
        const int row = i / width % (2 * kBlock), stage = i / width / (2 * kBlock), d = op_.dim + i % width;
        unsigned char* at = shared_ + stage * Shape::kStage +
                            (row < kBlock ? row * Elements::kKeyPitch
                                          : Shape::kKeyStage + (row - kBlock) * Elements::kValuePitch);
        reinterpret_cast<float*>(at)[d] = 0.0f;
      }
    }
  }

  // Where a lane's key of the block from `key` on lies: page and row in it; or the row; -1: nobody sees it.
  struct Place {
    int page, row;
  };
  __device__ Place locate(int key, int end) const {
    const int own = key + lane_;
    if (lane_ >= kBlock || own < block_.first || own >= end) return {-1, 0};
    if (op_.table == nullptr) return {0, tile_.first_query_row + own};
    const int page = op_.table[tile_.sequence * op_.table_row + own / op_.page_tokens];
    return {page, own % op_.page_tokens};
  }

  // Starts the copies of a block's keys and values; -1: of none. Always a group.
  __device__ void issue(int stage, int key, const Place& place) {
    unsigned char* keys = shared_ + stage * Shape::kStage;
    unsigned char* values = keys + Shape::kKeyStage;
    if (key >= 0) {
      if (op_.table != nullptr) {
        copy_pages(keys, values, place);
      } else if constexpr (Elements::kBytes == 4) {
        op_.vectors ? copy_rows<4>(keys, values, place) : copy_rows<1>(keys, values, place);
      }
    }
    copy_async_commit();
  }

  __device__ void copy_pages(unsigned char* keys, unsigned char* values, const Place& place) {
    const int vectors = static_cast<int>(op_.row_bytes / 16);
    for (int first = 0; first < kBlock * Elements::kVectors; first += blockDim.x) {
      const int item = first + threadIdx.x, row = min(item / Elements::kVectors, kBlock - 1);
      const int vector = item % Elements::kVectors;
      const int page = __shfl_sync(kAllLanes, place.page, row);
      const int in_page = __shfl_sync(kAllLanes, place.row, row);
      if (item >= kBlock * Elements::kVectors || vector >= vectors) continue;
      const bool there = page >= 0;
      const unsigned char* from = op_.pages;
      if (there) {
        from += page * op_.page_bytes + (int64_t{2} * kv_head_ * op_.page_tokens + in_page) * op_.row_bytes +
                16 * vector;
      }
      // Q8_0's scales come behind the numbers.
      const int to = Elements::kBytes == 1 && vector == vectors - 1 ? kD : 16 * vector;
      copy_async<16>(keys + row * Elements::kKeyPitch + to, from, there);
      copy_async<16>(values + row * Elements::kValuePitch + to, there ? from + op_.values_offset : from,
                     there);
    }
  }

  template <int kFloats>
  __device__ void copy_rows(unsigned char* keys, unsigned char* values, const Place& place) {
    constexpr int kRow = kD / kFloats;
    for (int first = 0; first < kBlock * kRow; first += blockDim.x) {
      const int item = first + threadIdx.x, row = min(item / kRow, kBlock - 1), d = item % kRow * kFloats;
      const bool there = __shfl_sync(kAllLanes, place.page, row) >= 0;
      const int64_t source = __shfl_sync(kAllLanes, place.row, row);
      if (item >= kBlock * kRow || d >= op_.dim) continue;
      const int64_t k = there ? source * op_.k_token + kv_head_ * op_.k_head + d : 0;
      const int64_t v = there ? source * op_.v_token + kv_head_ * op_.v_head + d : 0;
      copy_async<4 * kFloats>(keys + row * Elements::kKeyPitch + 4 * d, op_.k + k, there);
      copy_async<4 * kFloats>(values + row * Elements::kValuePitch + 4 * d, op_.v + v, there);
    }
  }

  __device__ void start_chunk() {
#pragma unroll
    for (int i = 0; i < 2; ++i) largest_[i] = -INFINITY, sum_[i] = 0;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] = 0;
    }
  }

  __device__ void add_block(int stage, int key) {
    const unsigned char* keys = shared_ + stage * Shape::kStage;
    float scores[kTiles][4];
    if constexpr (kTogether) {
      if (warp_ < kTiles) {
        float own[1][4];
        multiply_keys<1>(keys + 8 * warp_ * Elements::kKeyPitch, own);
        shape_scores<1>(key + 8 * warp_, own);
        store_four(exchange_, 4 * threadIdx.x, 4 * blockDim.x, true,
                   make_float4(own[0][0], own[0][1], own[0][2], own[0][3]));
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float4 four = *reinterpret_cast<const float4*>(exchange_ + 4 * (32 * n + lane_));
        scores[n][0] = four.x, scores[n][1] = four.y, scores[n][2] = four.z, scores[n][3] = four.w;
      }
    } else {
      multiply_keys<kTiles>(keys, scores);
      shape_scores<kTiles>(key, scores);
    }
    weigh(scores);
    add_values(keys + Shape::kKeyStage, scores);
  }

  template <int kCount>
  __device__ void multiply_keys(const unsigned char* keys, float (&scores)[kCount][4]) {
    float low[kCount][4];
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = low[n][i] = 0;
    }
    const int steps = (op_.dim + 7) / 8;
#pragma unroll 2
    for (int k = 0; k < steps; ++k) {
      uint32_t a[2][4], b[Elements::kParts][kCount][2];
      load_parts<Shape::kQueryPitch>(queries_, k, lower_rows_, a[0]);
      load_parts<Shape::kQueryPitch>(queries_ + Shape::kQueries, k, lower_rows_, a[1]);
      Elements::template keys<kCount>(keys, k, b);
      multiply_parts<kCount>(scores, low, a, b);
    }
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] += low[n][i];
    }
  }

  // Scales, biases and caps; -infinity where a row does not see the key.
  template <int kCount>
  __device__ void shape_scores(int key, float (&scores)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row_ + lane_ / 4 + 8 * i;
      const float* bias = nullptr;
      if (op_.bias != nullptr) {
        bias = op_.bias + head(row) * (2 * op_.reach - 1) + op_.reach - 1 - row / op_.share;
      }
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int j = key + 8 * n + 2 * (lane_ % 4) + c;
          float s = scores[n][2 * i + c] * op_.scale;
          if (j < rows_[i].first || j >= rows_[i].end) {
            s = -INFINITY;
          } else {
            if (bias != nullptr) s += bias[j];
            if (op_.soft_cap > 0) s = op_.soft_cap * tanhf(s / op_.soft_cap);
          }
          scores[n][2 * i + c] = s;
        }
      }
    }
  }

  // Scores to weights; what there was is scaled to their largest.
  __device__ void weigh(float (&scores)[kTiles][4]) {
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = largest_[i];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) most = fmaxf(most, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float shift = most == -INFINITY ? 0.0f : most;
      factor[i] = most == largest_[i] ? 1.0f : exp_of(largest_[i] - shift);
      largest_[i] = most;
      float sum = sum_[i] * factor[i];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) sum += scores[n][2 * i + c] = exp_of(scores[n][2 * i + c] - shift);
      }
      sum_[i] = sum;  // this lane's keys'
    }
    if (!__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] *= factor[i / 2];
    }
  }

  __device__ void add_values(const unsigned char* values, const float (&weights)[kTiles][4]) {
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      uint32_t a[2][4];
      split_accumulator(weights[k], a);
#pragma unroll
      for (int n = 0; n < kOutTiles; n += kGroup) {
        if (8 * (first_tile_ + n) >= op_.dim) break;
        uint32_t b[Elements::kParts][kGroup][2];
        Elements::template values<kGroup>(values, k, first_tile_ + n, b);
        multiply_parts<kGroup>(out_ + n, out_ + n, a, b);
      }
    }
  }

  __device__ void finish_chunk(int chunk, bool last) {
    float factor_before[2], factor_after[2];
    bool had[2], has[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = sum_[i];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      has[i] = rows_[i].first < (chunk + 1) * kChunkKeys && rows_[i].end > chunk * kChunkKeys;
      had[i] = had_[i];
      factor_before[i] = factor_after[i] = 1;
      if (tile_.slot >= 0) {
        if (has[i]) keep(i, sum);
      } else if (has[i] && !had[i]) {
        total_largest_[i] = largest_[i], total_sum_[i] = sum;
      } else if (has[i]) {
        const Merge merge = merge_of(total_largest_[i], largest_[i]);
        factor_before[i] = merge.before, factor_after[i] = merge.after;
        total_largest_[i] = merge.largest;
        total_sum_[i] = fmaf(sum, merge.after, total_sum_[i] * merge.before);
      }
      had_[i] = had[i] || has[i];
    }
    if (tile_.slot >= 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!valid_[i] || !(has[i] || last)) continue;
      const int row = first_row_ + lane_ / 4 + 8 * i;
      float* to = op_.out + token(row) * op_.out_token + head(row) * op_.out_head;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int d = 8 * (first_tile_ + n) + 2 * (lane_ % 4) + c;
          if (d >= op_.dim) continue;
          float x = out_[n][2 * i + c];
          if (had[i]) x = has[i] ? fmaf(x, factor_after[i], to[d] * factor_before[i]) : to[d];
          to[d] = last ? x / total_sum_[i] : x;
        }
      }
      if (last && op_.log_sum_exp != nullptr && lane_ % 4 == 0 && first_tile_ == 0) {
        op_.log_sum_exp[int64_t{token(row)} * op_.heads + head(row)] =
            total_largest_[i] + logf(total_sum_[i]);
      }
    }
    start_chunk();
  }

  // A chunk's result, for another kernel to merge.
  __device__ void keep(int i, float sum) {
    const int row = first_row_ + lane_ / 4 + 8 * i, width = (op_.dim + 7) / 8 * 8;
    const int64_t at =
        ((int64_t{tile_.sequence} * op_.split_queries + row / op_.share) * op_.heads + head(row)) *
            op_.slots +
        tile_.slot;
    if (lane_ % 4 == 0 && first_tile_ == 0) op_.split_largest[at] = largest_[i], op_.split_sum[at] = sum;
    float* to = op_.split_out + at * width;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      const int d = 8 * (first_tile_ + n);
      if (d >= op_.dim) break;
      *reinterpret_cast<float2*>(to + d + 2 * (lane_ % 4)) = make_float2(out_[n][2 * i], out_[n][2 * i + 1]);
    }
  }

  const AttentionArguments& op_;
  const AttentionTile& tile_;
  int lane_, warp_, kv_head_, first_row_;
  unsigned char* shared_;
  int first_tile_;  // of this warp's part of D
  float *queries_, *exchange_;
  bool lower_rows_;  // whether there are any of the last eight
  Seen block_, warp_seen_, rows_[2];
  bool valid_[2], had_[2] = {false, false};
  float out_[kOutTiles][4];
  float largest_[2], sum_[2], total_largest_[2] = {0, 0}, total_sum_[2] = {0, 0};
};

}  // namespace qiao::cuda
