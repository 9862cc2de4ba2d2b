// A warp's 16 rows of attention, whoever walks their keys: what they see, their scores' rules, what they have
// summed up so far, and where it goes.
#pragma once

#include "backend/cuda/attention_arguments.h"
#include "backend/cuda/attention_elements.h"

namespace qiao::cuda {

// The rows of a block and what of the sequence they meet.
struct AttentionTile {
  int sequence, kv_head, first_query_row, queries, length;
  int tile;                 // rows [tile * 16 * groups, …) of queries × share
  int first_chunk, chunks;  // that it walks
  int slot;                 // in the workspace, or -1: the result is whole
};

// The query of a row. A branch, as a division takes longer than all else that leads to the first key.
__device__ inline int query_of(const AttentionArguments& op, const AttentionTile& tile, int row) {
  if (tile.queries == 1) return 0;
  return row / op.share;
}
// Keys [first, end) that some rows of [row, end) see; none: first >= end.
struct SeenKeys {
  int first, end;
};
inline constexpr int kNoKey = 0x7fffffff;  // the first that no rows see
__device__ inline SeenKeys seen_keys(const AttentionArguments& op, const AttentionTile& tile, int row,
                                     int end) {
  if (row >= end) return {kNoKey, 0};
  if (!op.causal) return {0, tile.length};
  const int before = tile.length - tile.queries;
  return {first_key(before + query_of(op, tile, row), op.window), before + query_of(op, tile, end - 1) + 1};
}
// A key's row in its page, null: nobody sees it; and how far behind it its scale lies, where a row has one of
// its own (RowScales::kOne). Its value's scale is op.page_tokens floats further.
struct KeyRow {
  const unsigned char* at;
  int64_t scale;
};
__device__ inline KeyRow page_row(const AttentionArguments& op, int kv_head, int page, int64_t in_page) {
  return {op.pages + page * op.page_bytes + kv_head * op.head_bytes + in_page * op.row_bytes,
          op.scales_offset - in_page * (op.row_bytes - 4)};
}
__device__ inline KeyRow page_row(const AttentionArguments& op, const AttentionTile& tile, int key) {
  const int page = op.table[tile.sequence * op.table_row + key / op.page_tokens];
  return page_row(op, tile.kv_head, page, key % op.page_tokens);
}
// The same, or among packed rows in 16 bits.
__device__ inline KeyRow row_of(const AttentionArguments& op, const AttentionTile& tile, int key) {
  if (op.table != nullptr) return page_row(op, tile, key);
  const int64_t row = int64_t{tile.first_query_row} + key;
  return {op.pages + tile.kv_head * op.head_bytes + row * op.row_bytes, 0};
}

// kOutTiles: tiles of 8 columns of the result that are this warp's, from `first_tile` on.
template <class Elements, int kOutTiles>
class AttentionRows {
 protected:
  // `group` of the block's `groups` of 16 rows.
  __device__ AttentionRows(const AttentionArguments& op, const AttentionTile& tile, int group, int groups,
                           int first_tile)
      : op_(op), tile_(tile), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32), first_tile_(first_tile) {
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
      rows_[i] = seen(row, row < rows ? row + 1 : row);
    }
  }

  // Whether there is row i: seen_keys says of others that they see none, from beyond all keys on.
  __device__ bool is_valid(int i) const { return rows_[i].first != kNoKey; }
  __device__ SeenKeys seen(int row, int end) const { return seen_keys(op_, tile_, row, end); }
  __device__ int token(int row) const { return tile_.first_query_row + query_of(op_, tile_, row); }
  __device__ int head(int row) const {
    return tile_.kv_head * op_.share + row - query_of(op_, tile_, row) * op_.share;
  }
  __device__ const float* query(int row) const {
    return op_.q + token(row) * op_.q_token + head(row) * op_.q_head;
  }

  // A key's row in its page, or among packed rows in 16 bits; null: no row of the block sees it, or it is not
  // of [.., end).
  __device__ KeyRow key_row(int key, int end) const {
    if (key < block_.first || key >= end) return {nullptr, 0};
    return row_of(op_, tile_, key);
  }

  // Once the queries are in shared memory.
  __device__ void set_scale(const unsigned char* queries) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale_[i] =
          op_.scale * (op_.soft_cap > 0 ? 1.0f : kLog2E) * Elements::score_factor(queries, lane_ / 4 + 8 * i);
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

  // Scales (times kLog2E), biases (who knows that there are none leaves them out) and caps of keys from `key`
  // on; -infinity where a row does not see one.
  template <int kCount, bool kBiases = true>
  __device__ void shape_scores(int key, float (&scores)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i == 1 && !lower_rows_) {
#pragma unroll
        for (int n = 0; n < kCount; ++n) scores[n][2] = scores[n][3] = -INFINITY;
        continue;
      }
      const int row = first_row_ + lane_ / 4 + 8 * i;
      const bool whole = rows_[i].first <= key && rows_[i].end >= key + 8 * kCount;
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        scores[n][2 * i] *= scale_[i], scores[n][2 * i + 1] *= scale_[i];
      }
      if (kBiases && op_.bias != nullptr) {
        const float* bias = op_.bias + head(row) * (2 * op_.reach - 1) + op_.reach - 1 - row / op_.share;
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int j = key + 8 * n + 2 * (lane_ % 4) + c;
            if (rows_[i].first <= j && j < rows_[i].end) {
              scores[n][2 * i + c] += op_.soft_cap > 0 ? bias[j] : bias[j] * kLog2E;
            }
          }
        }
      }
      if (op_.soft_cap > 0) {
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            scores[n][2 * i + c] = op_.soft_cap * kLog2E * tanhf(scores[n][2 * i + c] / op_.soft_cap);
          }
        }
      }
      if (whole) continue;
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int j = key + 8 * n + 2 * (lane_ % 4) + c;
          if (j < rows_[i].first || j >= rows_[i].end) scores[n][2 * i + c] = -INFINITY;
        }
      }
    }
  }

  // A block's scores to weights; `factor`: what there was is to be times that.
  template <int kCount>
  __device__ void weigh(float (&scores)[kCount][4], float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = -INFINITY;
#pragma unroll
      for (int n = 0; n < kCount; ++n) most = fmaxf(most, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float scale = scale_of(largest_[i], most), shift = scale == -INFINITY ? 0.0f : scale;
      factor[i] = scale == largest_[i] ? 1.0f : exp2_flushed(largest_[i] - shift);
      largest_[i] = scale;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          sum += scores[n][2 * i + c] = exp2_flushed(scores[n][2 * i + c] - shift);
        }
      }
      sum_[i] = fmaf(sum_[i], factor[i], sum);  // this lane's keys'
    }
  }
  __device__ void rescale(const float (&factor)[2]) {
    if (kOutTiles > 4 && !__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] *= factor[i / 2];
    }
  }

  // How a chunk joins the ones before it: whether a row had any and has this one, and their factors.
  struct Join {
    bool had[2], has[2];
    float before[2], after[2];
  };
  __device__ static float joined(const Join& join, int i, float x, float earlier) {
    if (!join.had[i]) return x;
    return join.has[i] ? fmaf(x, join.after[i], earlier * join.before[i]) : earlier;
  }
  __device__ bool has_chunk(int i, int chunk) const {
    return rows_[i].first < (chunk + 1) * kChunkKeys && rows_[i].end > chunk * kChunkKeys;
  }
  __device__ float chunk_sum(int i) const {
    float sum = sum_[i];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    return sum + __shfl_xor_sync(kAllLanes, sum, 2);
  }
  // The rows' largest scores and sums join; the results are the caller's.
  __device__ Join join_chunk(int chunk) {
    Join join{};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = chunk_sum(i);
      join.has[i] = has_chunk(i, chunk), join.had[i] = had_[i];
      join.before[i] = join.after[i] = 1;
      if (join.has[i] && !had_[i]) {
        total_largest_[i] = largest_[i], total_sum_[i] = sum;
      } else if (join.has[i]) {
        const Merge merge = merge_of(total_largest_[i], largest_[i]);
        join.before[i] = merge.before, join.after[i] = merge.after;
        total_largest_[i] = merge.largest;
        total_sum_[i] = fmaf(sum, merge.after, total_sum_[i] * merge.before);
      }
      had_[i] = had_[i] || join.has[i];
    }
    return join;
  }

  // Of row i, once all chunks have joined; by the warp of the first columns.
  __device__ void store_log_sum_exp(int i) const {
    if (op_.log_sum_exp == nullptr || lane_ % 4 != 0 || first_tile_ != 0) return;
    const int row = first_row_ + lane_ / 4 + 8 * i;
    op_.log_sum_exp[int64_t{token(row)} * op_.heads + head(row)] =
        fmaf(total_largest_[i], kLn2, logf(total_sum_[i]));
  }

  // The chunk's results join those of the ones before it in the rows of `out`, or are kept; `last`: none
  // follows.
  __device__ void finish_chunk(int chunk, bool last) {
    if (tile_.slot >= 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float sum = chunk_sum(i);
        if (has_chunk(i, chunk)) keep(i, sum);
      }
      return;
    }
    const Join join = join_chunk(chunk);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!is_valid(i) || !(join.has[i] || last)) continue;
      const int row = first_row_ + lane_ / 4 + 8 * i;
      float* to = op_.out + token(row) * op_.out_token + head(row) * op_.out_head;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int d = 8 * first_tile_ + Elements::template column<kOutTiles>(n, c);
          if (d >= op_.dim) continue;
          const float x = joined(join, i, out_[n][2 * i + c], join.had[i] ? to[d] : 0.0f);
          to[d] = last ? x / total_sum_[i] : x;
        }
      }
      if (last) store_log_sum_exp(i);
    }
    start_chunk();
  }

  // A chunk's result, for another kernel to merge.
  __device__ void keep(int i, float sum) {
    const int row = first_row_ + lane_ / 4 + 8 * i, width = (op_.dim + 7) / 8 * 8;
    const int64_t at =
        ((int64_t{tile_.sequence} * op_.split_queries + query_of(op_, tile_, row)) * op_.heads + head(row)) *
            op_.slots +
        tile_.slot;
    if (lane_ % 4 == 0 && first_tile_ == 0) op_.split_largest[at] = largest_[i], op_.split_sum[at] = sum;
    float* to = op_.split_out + at * width;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int d = 8 * first_tile_ + Elements::template column<kOutTiles>(n, c);
        if (d < width) to[d] = out_[n][2 * i + c];
      }
    }
  }

  const AttentionArguments& op_;
  const AttentionTile& tile_;
  int lane_, warp_, first_row_;
  int first_tile_;
  bool lower_rows_;  // whether there are any of the last eight
  SeenKeys block_, warp_seen_, rows_[2];
  bool had_[2] = {false, false};
  float scale_[2];
  float out_[kOutTiles][4];
  // largest: what weights are scaled to, by scale_of.
  float largest_[2], sum_[2], total_largest_[2] = {0, 0}, total_sum_[2] = {0, 0};
};

}  // namespace qiao::cuda
