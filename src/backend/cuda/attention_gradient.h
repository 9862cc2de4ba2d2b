// What the ways back through attention over packed sequences share, whatever their products are made of: two
// passes over pairs of queries and keys, each with its own rows in a warp's hands and the others passing by,
// so that no sum is ever shared: dq with 16 rows of queries (queries × heads of a group) and the keys
// ascending; dk and dv with 16 keys and, head by head, the queries ascending. A kind has rows x and y in its
// warps' hands (dq: q and dout; dk, dv: k and v) and blocks of rows u and w (k and v; q and dout) passing by
// in two stages, shared by the block's warps. A block's x·u are scores, y·w dp; p and ds are made in
// registers, where they are operands of the products with w and u.
#pragma once

#include "backend/cuda/attention_arguments.h"
#include "backend/cuda/attention_order.h"

namespace qiao::cuda {

// Rows [T, heads, D].
struct GradientRows {
  float* data;
  int64_t token, head;  // strides
  __device__ float* row(int64_t t, int h) const { return data + t * token + h * head; }
};

// In BF16, [T, heads, kD], zeros behind a row's own width.
struct RoundedRows {
  uint8_t *q, *dout, *k, *v;
};

struct AttentionGradients {
  GradientRows q, k, v, out, dout, dq, dk, dv;
  const float* log_sum_exp;  // [T, H]
  float* delta;              // [T, H]
  const int32_t* starts;
  int64_t tokens;
  int sequences, heads, share, dim, window;
  float scale, soft_cap;
  bool causal, vectors;
  RoundedRows rounded;
};

// By attention_varlen_backward_bf16.cu; memory: gradient_rounded_bytes.
void launch_rounded_gradients(const Stream& stream, int block_shared_bytes, AttentionGradients op,
                              std::byte* memory);
int64_t gradient_rounded_bytes(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim);

// A warp's 16 rows, and what they meet. kQueries: rows are queries and the result is dq; else they are keys,
// and the result is dk and dv.
template <int kD, bool kQueries>
class GradientTile {
 protected:
  static constexpr int kOutTiles = kD / 8;

  __device__ GradientTile(const AttentionGradients& op, const FoundTile& tile)
      : op_(op),
        lane_(threadIdx.x % 32),
        kv_head_(blockIdx.y),
        begin_(op.starts[tile.sequence]),
        length_(op.starts[tile.sequence + 1] - begin_),
        shared_(shared_memory<unsigned char>()) {
    const int rows = length_ * (kQueries ? op.share : 1), warps = blockDim.x / 32;
    // Queries: the last first. Keys: the first, which meet the most.
    const int block_row = (kQueries ? tile.count - 1 - tile.tile : tile.tile) * warps * kWarpRows;
    first_row_ = block_row + threadIdx.x / 32 * kWarpRows;
    block_ = met(block_row, min(block_row + warps * kWarpRows, rows));
    mine_ = met(first_row_, min(first_row_ + kWarpRows, rows));
    rows_ = rows;
  }

  struct Range {
    int first, end;
  };
  // What rows [row, end) meet: keys that queries see, or queries that see keys.
  __device__ Range met(int row, int end) const {
    if (row >= end) return {0x7fffffff, 0};
    if (!op_.causal) return {0, length_};
    if constexpr (kQueries) return {first_key(row / op_.share, op_.window), (end - 1) / op_.share + 1};
    return {row, op_.window > 0 && op_.window < length_ - end + 1 ? end - 1 + op_.window : length_};
  }
  __device__ bool sees(int query, int key) const {
    if (query >= length_ || key >= length_) return false;
    return !op_.causal || (key <= query && key >= first_key(query, op_.window));
  }
  __device__ int row_of(int i) const { return first_row_ + lane_ / 4 + 8 * i; }
  __device__ int64_t row_token(int row) const { return begin_ + (kQueries ? row / op_.share : row); }
  __device__ int row_head(int row) const {
    return kQueries ? kv_head_ * op_.share + row % op_.share : kv_head_;
  }
  // Whether row `row` of the sequence passes by, for any warp of the block.
  __device__ bool passes_by(int row) const { return row >= block_.first && row < block_.end; }
  __device__ int passing_head(int head) const { return kQueries ? kv_head_ : head; }

  // issue(stage, at, head) starts the copies of the block of kBlock rows from `at` on; add(stage, at) adds
  // what it holds.
  template <int kBlock, class Issue, class Add>
  __device__ void walk(Issue issue, Add add) {
    const int begin = block_.first / kBlock * kBlock, end = block_.end;
    const int blocks = (end - begin + kBlock - 1) / kBlock, passes = kQueries ? 1 : op_.share;
    issue(0, begin, kv_head_ * op_.share);
    copy_async_commit();
    for (int i = 0, stage = 0; i < blocks * passes; ++i, stage ^= 1) {
      const int at = begin + i % blocks * kBlock;
      head_ = kv_head_ * op_.share + i / blocks;
      if (i + 1 < blocks * passes) {
        issue(stage ^ 1, begin + (i + 1) % blocks * kBlock, kv_head_ * op_.share + (i + 1) / blocks);
      }
      copy_async_commit();
      copy_async_wait<1>();
      __syncthreads();
      if (mine_.first < at + kBlock && mine_.end > at) add(stage, at);
      __syncthreads();
    }
    copy_async_wait<0>();
  }

  // Products q·k of kTiles tiles of 8 columns to the weights p; slope: of a score by its product.
  template <int kTiles>
  __device__ void weights(float (&p)[kTiles][4], float (&slope)[kTiles][4], int at) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Pair pair = pair_of(n, i, at);
        float s = p[n][i] * op_.scale;
        slope[n][i] = op_.scale;
        if (op_.soft_cap > 0) {
          const float share = tanhf(s / op_.soft_cap);
          s = op_.soft_cap * share;
          slope[n][i] *= fmaf(-share, share, 1.0f);
        }
        p[n][i] = pair.seen ? exp_of(s - op_.log_sum_exp[pair.scalar]) : 0.0f;
      }
    }
  }
  // Products dout·v to ds.
  template <int kTiles>
  __device__ void gradients(float (&ds)[kTiles][4], const float (&p)[kTiles][4],
                            const float (&slope)[kTiles][4], int at) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Pair pair = pair_of(n, i, at);
        ds[n][i] = pair.seen ? p[n][i] * (ds[n][i] - op_.delta[pair.scalar]) * slope[n][i] : 0.0f;
      }
    }
  }

  // The query and key of a lane's element i of tile n: whether they meet, and where the query's log_sum_exp
  // and delta are.
  struct Pair {
    bool seen;
    int64_t scalar;
  };
  __device__ Pair pair_of(int n, int i, int at) const {
    const int row = row_of(i / 2), column = at + 8 * n + 2 * (lane_ % 4) + i % 2;
    const int query = kQueries ? row / op_.share : column, key = kQueries ? column : row;
    return {sees(query, key), int64_t{begin_ + query} * op_.heads + (kQueries ? row_head(row) : head_)};
  }

  __device__ void store(const GradientRows& to, const float (&sums)[kOutTiles][4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_of(i);
      if (row >= rows_) continue;
      float* at = to.row(row_token(row), row_head(row));
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int d = 8 * n + 2 * (lane_ % 4) + c;
          if (d < op_.dim) at[d] = sums[n][2 * i + c];
        }
      }
    }
  }

  const AttentionGradients& op_;
  int lane_, kv_head_, begin_, length_, first_row_, rows_, head_ = 0;
  unsigned char* shared_;
  Range block_, mine_;
};

// Blocks: tiles × key/value heads. At most 128 threads, so that each may have 255 registers.
template <template <int, bool, bool, bool> class Warp, int kD, bool kQueries, bool kFirst, bool kSecond>
__global__ void __launch_bounds__(32 * kMostWarps)
    gradient_tiles(const __grid_constant__ AttentionGradients op) {
  begin_kernel();
  FoundTile found{};
  const int tile_rows = kWarpRows * static_cast<int>(blockDim.x / 32);
  const auto tiles = [&](int rows, int) { return tiles_of(rows * (kQueries ? op.share : 1), tile_rows); };
  if (!find_tile(static_cast<int>(blockIdx.x), {op.starts, nullptr, op.sequences}, tiles, &found)) return;
  Warp<kD, kQueries, kFirst, kSecond>(op, found).run();
}

// dk and dv (kFirst, kSecond) each have a launch of their own for heads of more than 128.
template <template <int, bool, bool, bool> class Warp, class Shape, int kD>
void launch_gradients(const Stream& stream, int block_shared_bytes, const AttentionGradients& op) {
  const auto run = [&](auto kernel, int64_t share) {
    const int warps = warps_that_fit<Shape>(warps_for(op.tokens * share, op.sequences), block_shared_bytes);
    const dim3 grid(most_tiles(op.tokens * share, op.sequences, warps * kWarpRows),
                    static_cast<unsigned>(op.heads / op.share));
    launch("attention_varlen_backward", stream, kernel, grid, static_cast<unsigned>(32 * warps),
           static_cast<size_t>(Shape::shared_bytes(warps)), op);
  };
  run(gradient_tiles<Warp, kD, true, true, false>, op.share);
  if constexpr (kD <= 128) {
    run(gradient_tiles<Warp, kD, false, true, true>, 1);
  } else {
    run(gradient_tiles<Warp, kD, false, true, false>, 1);
    run(gradient_tiles<Warp, kD, false, false, true>, 1);
  }
}

}  // namespace qiao::cuda
