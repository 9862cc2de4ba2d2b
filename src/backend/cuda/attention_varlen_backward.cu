// attention_varlen_backward: two passes over pairs of queries and keys, each with its own rows in a warp's
// hands and the others passing by, so that no sum is ever shared: dq with 16 rows of queries (queries × heads
// of a group) and the keys ascending; dk and dv with 16 keys and, head by head, the queries ascending. Eight
// products of TF32 in three parts each (attention_elements.h), where a single pass with atomics has five:
// 1.4 times the work for an order that is the same each time.
//
// Plan of a warp: rows x and y (dq: q and dout; dk, dv: k and v) stay in shared memory; blocks of kBlock rows
// u and w (k and v; q and dout) come by cp.async in two stages, shared by the block's warps. A block's
// x·u are scores, y·w dp; p and ds are made in registers, where they are operands of the products with u and
// w, which add to 16 × D floats in registers (D each; twice that for dk and dv, but for D above 128, where
// each has a launch of its own). Limited by the tensor cores. Measured: docs/h200.md.
#include "backend/ops/attention_varlen.h"

#include <algorithm>

#include "backend/cuda/attention_arguments.h"
#include "backend/cuda/attention_elements.h"
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kv_pages.h"

namespace qiao::cuda {
namespace {

// Rows [T, heads, D].
struct GradientRows {
  float* data;
  int64_t token, head;  // strides
  __device__ float* row(int64_t t, int h) const { return data + t * token + h * head; }
};
GradientRows gradient_rows(const Tensor& t) { return {t.as<float>(), t.stride[0], t.stride[1]}; }

struct GradientArguments {
  GradientRows q, k, v, out, dout, dq, dk, dv;
  const float* log_sum_exp;  // [T, H]
  float* delta;              // [T, H]
  const int32_t* starts;
  int64_t tokens;
  int sequences, heads, share, dim, window;
  float scale, soft_cap;
  bool causal, vectors;
};

// dout · out, a warp a row.
__global__ void __launch_bounds__(128) gradient_delta(const __grid_constant__ GradientArguments op) {
  begin_kernel();
  const int64_t item = int64_t{blockIdx.x} * 4 + threadIdx.x / 32;
  if (item >= op.tokens * op.heads) return;
  const float* dout = op.dout.row(item / op.heads, static_cast<int>(item % op.heads));
  const float* out = op.out.row(item / op.heads, static_cast<int>(item % op.heads));
  float sum = 0;
  for (int d = threadIdx.x % 32; d < op.dim; d += 32) sum = fmaf(dout[d], out[d], sum);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) op.delta[item] = sum;
}

template <int kD>
struct GradientShape {
  static constexpr int kBlock = kD <= 64 ? 32 : kD <= 128 ? 16 : 8;
  static constexpr int kTiles = kBlock / 8;
  static constexpr int kPitch = F32Elements<kD>::kKeyPitch;  // bytes; of values, two lanes meet in a bank
  static constexpr int kStage = 2 * kBlock * kPitch;
  static constexpr int kRowsPitch = kD + 8;  // floats
  static constexpr int shared_bytes(int warps) {
    return 2 * kStage + warps * 2 * kWarpRows * kRowsPitch * static_cast<int>(sizeof(float));
  }
};

// kQueries: rows are queries and the result is dq; else they are keys, and dk, dv or both are made.
template <int kD, bool kQueries, bool kFirst, bool kSecond>
class GradientWarp {
  using Shape = GradientShape<kD>;
  static constexpr int kBlock = Shape::kBlock, kTiles = Shape::kTiles, kOutTiles = kD / 8;

 public:
  __device__ GradientWarp(const GradientArguments& op, const FoundTile& tile)
      : op_(op),
        lane_(threadIdx.x % 32),
        kv_head_(blockIdx.y),
        begin_(op.starts[tile.sequence]),
        length_(op.starts[tile.sequence + 1] - begin_),
        shared_(shared_memory<unsigned char>()),
        x_(reinterpret_cast<float*>(shared_ + 2 * Shape::kStage) +
           threadIdx.x / 32 * 2 * kWarpRows * Shape::kRowsPitch),
        y_(x_ + kWarpRows * Shape::kRowsPitch) {
    const int rows = length_ * (kQueries ? op.share : 1), warps = blockDim.x / 32;
    // Queries: the last first. Keys: the first, which meet the most.
    const int block_row = (kQueries ? tile.count - 1 - tile.tile : tile.tile) * warps * kWarpRows;
    first_row_ = block_row + threadIdx.x / 32 * kWarpRows;
    block_ = met(block_row, min(block_row + warps * kWarpRows, rows));
    mine_ = met(first_row_, min(first_row_ + kWarpRows, rows));
    rows_ = rows;
  }

  __device__ void run() {
    load_rows();
    clear_padding();
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kFirst) first_[n][i] = 0;
        if constexpr (kSecond) second_[n][i] = 0;
      }
    }
    const int begin = block_.first / kBlock * kBlock, end = block_.end;
    const int blocks = (end - begin + kBlock - 1) / kBlock, passes = kQueries ? 1 : op_.share;
    issue(0, begin, kv_head_ * op_.share);
    for (int i = 0, stage = 0; i < blocks * passes; ++i, stage ^= 1) {
      const int at = begin + i % blocks * kBlock;
      head_ = kv_head_ * op_.share + i / blocks;
      if (i + 1 < blocks * passes) {
        issue(stage ^ 1, begin + (i + 1) % blocks * kBlock, kv_head_ * op_.share + (i + 1) / blocks);
      } else {
        copy_async_commit();
      }
      copy_async_wait<1>();
      __syncthreads();
      if (mine_.first < at + kBlock && mine_.end > at) add_block(stage, at);
      __syncthreads();
    }
    copy_async_wait<0>();
    if constexpr (kQueries) {
      store(op_.dq, first_);
    } else {
      if constexpr (kFirst) store(op_.dk, first_);
      if constexpr (kSecond) store(op_.dv, second_);
    }
  }

 private:
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

  __device__ void load_rows() {
    const int width = (op_.dim + 7) / 8 * 8;
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = first_row_ + i;
      const bool there = row < rows_;
      const int64_t t = there ? row_token(row) : begin_;
      const float* x = (kQueries ? op_.q : op_.k).row(t, there ? row_head(row) : 0);
      const float* y = (kQueries ? op_.dout : op_.v).row(t, there ? row_head(row) : 0);
      for (int d = lane_; d < width; d += 32) {
        x_[i * Shape::kRowsPitch + d] = there && d < op_.dim ? x[d] : 0.0f;
        y_[i * Shape::kRowsPitch + d] = there && d < op_.dim ? y[d] : 0.0f;
      }
    }
    __syncwarp();
  }

  __device__ void clear_padding() {
    const int width = (op_.dim + 7) / 8 * 8 - op_.dim;
    for (int i = threadIdx.x; i < 4 * kBlock * width; i += blockDim.x) {
      reinterpret_cast<float*>(shared_ + i / width * Shape::kPitch)[op_.dim + i % width] = 0.0f;
    }
  }

  // Starts the copies of a block: keys and values, or queries and their gradients of one head.
  __device__ void issue(int stage, int at, int head) {
    op_.vectors ? copy_rows<4>(stage, at, head) : copy_rows<1>(stage, at, head);
    copy_async_commit();
  }
  template <int kFloats>
  __device__ void copy_rows(int stage, int at, int head) {
    constexpr int kRow = kD / kFloats;
    unsigned char* u = shared_ + stage * Shape::kStage;
    const int source_head = kQueries ? kv_head_ : head;
    for (int item = threadIdx.x; item < kBlock * kRow; item += blockDim.x) {
      const int row = item / kRow, d = item % kRow * kFloats;
      if (d >= op_.dim) continue;
      const bool there = at + row >= block_.first && at + row < block_.end;
      const int64_t t = begin_ + (there ? at + row : 0);
      unsigned char* to = u + row * Shape::kPitch + 4 * d;
      copy_async<4 * kFloats>(to, (kQueries ? op_.k : op_.q).row(t, source_head) + d, there);
      copy_async<4 * kFloats>(to + kBlock * Shape::kPitch,
                              (kQueries ? op_.v : op_.dout).row(t, source_head) + d, there);
    }
  }

  // rows · block, of x and u or y and w.
  __device__ void multiply(const float* rows, const unsigned char* block, float (&products)[kTiles][4]) {
    float low[kTiles][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) products[n][i] = low[n][i] = 0;
    }
    const int steps = (op_.dim + 7) / 8;
#pragma unroll 2
    for (int k = 0; k < steps; ++k) {
      uint32_t a[2][4], b[2][kTiles][2];
      load_a<Shape::kRowsPitch>(rows, k, a);
      F32Elements<kD>::template keys<kTiles>(block, k, b);
      multiply_parts<kTiles>(products, low, a, b);
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) products[n][i] += low[n][i];
    }
  }

  // sums += weights [16, kBlock] × block.
  __device__ void add(float (&sums)[kOutTiles][4], const float (&weights)[kTiles][4],
                      const unsigned char* block) {
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      uint32_t a[2][4];
      split_accumulator(weights[k], a);
#pragma unroll
      for (int n = 0; n < kOutTiles; n += 4) {
        if (8 * n >= op_.dim) break;
        uint32_t b[2][4][2];
        F32Elements<kD>::template values<4, Shape::kPitch>(block, k, n, b);
        multiply_parts<4>(sums + n, sums + n, a, b);
      }
    }
  }

  __device__ void add_block(int stage, int at) {
    const unsigned char* u = shared_ + stage * Shape::kStage;
    const unsigned char* w = u + kBlock * Shape::kPitch;
    float p[kTiles][4], slope[kTiles][4];
    multiply(x_, u, p);
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
    if constexpr (kSecond) add(second_, p, w);
    if constexpr (kFirst) {
      float ds[kTiles][4];
      multiply(y_, w, ds);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Pair pair = pair_of(n, i, at);
          ds[n][i] = pair.seen ? p[n][i] * (ds[n][i] - op_.delta[pair.scalar]) * slope[n][i] : 0.0f;
        }
      }
      add(first_, ds, u);
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

  __device__ void store(const GradientRows& to, const float (&sums)[kOutTiles][4]) {
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

  const GradientArguments& op_;
  int lane_, kv_head_, begin_, length_, first_row_, rows_, head_ = 0;
  unsigned char* shared_;
  float *x_, *y_;
  Range block_, mine_;
  float first_[kFirst ? kOutTiles : 1][4];    // dq or dk
  float second_[kSecond ? kOutTiles : 1][4];  // dv
};

// Blocks: tiles × key/value heads. At most 128 threads, so that each may have 255 registers.
template <int kD, bool kQueries, bool kFirst, bool kSecond>
__global__ void __launch_bounds__(32 * kMostWarps)
    gradient_tiles(const __grid_constant__ GradientArguments op) {
  begin_kernel();
  FoundTile found{};
  const int tile_rows = kWarpRows * static_cast<int>(blockDim.x / 32);
  const auto tiles = [&](int rows, int) { return tiles_of(rows * (kQueries ? op.share : 1), tile_rows); };
  if (!find_tile(static_cast<int>(blockIdx.x), {op.starts, nullptr, op.sequences}, tiles, &found)) return;
  GradientWarp<kD, kQueries, kFirst, kSecond>(op, found).run();
}

template <int kD>
void launch_gradients(const Stream& stream, int block_shared_bytes, const GradientArguments& op) {
  const auto run = [&](auto kernel, int64_t share) {
    const int warps =
        warps_that_fit<GradientShape<kD>>(warps_for(op.tokens * share, op.sequences), block_shared_bytes);
    const dim3 grid(most_tiles(op.tokens * share, op.sequences, warps * kWarpRows),
                    static_cast<unsigned>(op.heads / op.share));
    launch("attention_varlen_backward", stream, kernel, grid, static_cast<unsigned>(32 * warps),
           static_cast<size_t>(GradientShape<kD>::shared_bytes(warps)), op);
  };
  run(gradient_tiles<kD, true, true, false>, op.share);
  if constexpr (kD <= 128) {
    run(gradient_tiles<kD, false, true, true>, 1);
  } else {
    run(gradient_tiles<kD, false, true, false>, 1);
    run(gradient_tiles<kD, false, false, true>, 1);
  }
}

}  // namespace

size_t CudaBackend::workspace_bytes(const AttentionVarlenBackward& op) const {
  return static_cast<size_t>(op.q.shape[0] * op.q.shape[1]) * sizeof(float);
}

void CudaBackend::do_attention_varlen_backward(const AttentionVarlenBackward& op) {
  GradientArguments a{};
  a.tokens = op.q.shape[0];
  refuse_wide_heads("attention_varlen_backward", op.q.shape[2]);
  if (a.tokens == 0 || op.starts.shape[0] == 1) return;
  a.q = gradient_rows(op.q), a.k = gradient_rows(op.k), a.v = gradient_rows(op.v);
  a.out = gradient_rows(op.out), a.dout = gradient_rows(op.dout);
  a.dq = gradient_rows(op.dq), a.dk = gradient_rows(op.dk), a.dv = gradient_rows(op.dv);
  a.log_sum_exp = op.log_sum_exp.as<float>();
  a.delta = op.workspace.as<float>();
  a.starts = op.starts.as<int32_t>();
  a.sequences = static_cast<int>(op.starts.shape[0] - 1);
  a.heads = static_cast<int>(op.q.shape[1]), a.dim = static_cast<int>(op.q.shape[2]);
  a.share = static_cast<int>(op.q.shape[1] / op.k.shape[1]);
  a.window = static_cast<int>(std::min<int64_t>(op.window, INT32_MAX));
  a.scale = op.scale, a.soft_cap = op.soft_cap, a.causal = op.causal;
  a.vectors =
      rows_of_vectors(op.q) && rows_of_vectors(op.k) && rows_of_vectors(op.v) && rows_of_vectors(op.dout);
  launch("attention_varlen_backward", stream_, gradient_delta, blocks_for(a.tokens * a.heads, 4), 128, 0, a);
  if (a.dim <= 64) return launch_gradients<64>(stream_, block_shared_bytes_, a);
  if (a.dim <= 128) return launch_gradients<128>(stream_, block_shared_bytes_, a);
  launch_gradients<256>(stream_, block_shared_bytes_, a);
}

}  // namespace qiao::cuda
