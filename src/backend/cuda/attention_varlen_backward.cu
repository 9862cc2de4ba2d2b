// attention_varlen_backward in F32, by attention_gradient.h's two passes: eight products of TF32 in three
// parts each (attention_elements.h), where a single pass with atomics has five: 1.4 times the work for an
// order that is the same each time.
//
// Plan of a warp: its rows stay in shared memory, blocks of kBlock rows come by cp.async. The products with u
// and w add to 16 × D floats in registers (D each; twice that for dk and dv, but for D above 128, where each
// has a launch of its own). Limited by the tensor cores. Measured: docs/h200.md.
#include "backend/ops/attention_varlen.h"

#include <algorithm>

#include "backend/cuda/attention_elements.h"
#include "backend/cuda/attention_gradient.h"
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kv_pages.h"

namespace qiao::cuda {
namespace {

GradientRows gradient_rows(const Tensor& t) { return {t.as<float>(), t.stride[0], t.stride[1]}; }

// dout · out, a warp a row.
__global__ void __launch_bounds__(128) gradient_delta(const __grid_constant__ AttentionGradients op) {
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

template <int kD, bool kQueries, bool kFirst, bool kSecond>
class GradientWarp : GradientTile<kD, kQueries> {
  using Tile = GradientTile<kD, kQueries>;
  using Tile::op_, Tile::lane_, Tile::begin_, Tile::shared_, Tile::first_row_, Tile::rows_, Tile::kOutTiles;
  using Shape = GradientShape<kD>;
  static constexpr int kBlock = Shape::kBlock, kTiles = Shape::kTiles;

 public:
  __device__ GradientWarp(const AttentionGradients& op, const FoundTile& tile)
      : Tile(op, tile),
        x_(reinterpret_cast<float*>(shared_ + 2 * Shape::kStage) +
           threadIdx.x / 32 * 2 * kWarpRows * Shape::kRowsPitch),
        y_(x_ + kWarpRows * Shape::kRowsPitch) {}

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
    Tile::template walk<kBlock>(
        [&](int stage, int at, int head) {
          op_.vectors ? copy_rows<4>(stage, at, head) : copy_rows<1>(stage, at, head);
        },
        [&](int stage, int at) { add_block(stage, at); });
    if constexpr (kQueries) {
      Tile::store(op_.dq, first_);
    } else {
      if constexpr (kFirst) Tile::store(op_.dk, first_);
      if constexpr (kSecond) Tile::store(op_.dv, second_);
    }
  }

 private:
  __device__ void load_rows() {
    const int width = (op_.dim + 7) / 8 * 8;
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = first_row_ + i;
      const bool there = row < rows_;
      const int64_t t = there ? Tile::row_token(row) : begin_;
      const float* x = (kQueries ? op_.q : op_.k).row(t, there ? Tile::row_head(row) : 0);
      const float* y = (kQueries ? op_.dout : op_.v).row(t, there ? Tile::row_head(row) : 0);
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

  // Of keys and values, or queries and their gradients of one head.
  template <int kFloats>
  __device__ void copy_rows(int stage, int at, int head) {
    constexpr int kRow = kD / kFloats;
    unsigned char* u = shared_ + stage * Shape::kStage;
    const int source_head = Tile::passing_head(head);
    for (int item = threadIdx.x; item < kBlock * kRow; item += blockDim.x) {
      const int row = item / kRow, d = item % kRow * kFloats;
      if (d >= op_.dim) continue;
      const bool there = Tile::passes_by(at + row);
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
    Tile::template weights<kTiles>(p, slope, at);
    if constexpr (kSecond) add(second_, p, w);
    if constexpr (kFirst) {
      float ds[kTiles][4];
      multiply(y_, w, ds);
      Tile::template gradients<kTiles>(ds, p, slope, at);
      add(first_, ds, u);
    }
  }

  float *x_, *y_;
  float first_[kFirst ? kOutTiles : 1][4];    // dq or dk
  float second_[kSecond ? kOutTiles : 1][4];  // dv
};

template <int kD>
void launch_f32(const Stream& stream, int block_shared_bytes, const AttentionGradients& op) {
  launch_gradients<GradientWarp, GradientShape<kD>, kD>(stream, block_shared_bytes, op);
}

int64_t delta_bytes(int64_t rows) { return ceil_div(rows * static_cast<int64_t>(sizeof(float)), 256) * 256; }

}  // namespace

size_t CudaBackend::workspace_bytes(const AttentionVarlenBackward& op) const {
  const int64_t tokens = op.q.shape[0], heads = op.q.shape[1];
  const int64_t rounded =
      op.compute == Compute::kBF16 ? gradient_rounded_bytes(tokens, heads, op.k.shape[1], op.q.shape[2]) : 0;
  return static_cast<size_t>(delta_bytes(tokens * heads) + rounded);
}

void CudaBackend::do_attention_varlen_backward(const AttentionVarlenBackward& op) {
  AttentionGradients a{};
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
  if (op.compute == Compute::kBF16) {
    auto* memory = op.workspace.as<std::byte>() + delta_bytes(a.tokens * a.heads);
    return launch_rounded_gradients(stream_, block_shared_bytes_, a, memory);
  }
  if (a.dim <= 64) return launch_f32<64>(stream_, block_shared_bytes_, a);
  if (a.dim <= 128) return launch_f32<128>(stream_, block_shared_bytes_, a);
  launch_f32<256>(stream_, block_shared_bytes_, a);
}

}  // namespace qiao::cuda
