// Products of activations and a weight: linear, grouped_linear and token_logprob's logits. The order of a
// sum, by which the same row gives the same bits alone and in a full batch, is a function of the weight's N
// and K:
// - K is cut into segments (segment_length), multiples of 256. Inside one an output is one chain of steps, k
//   ascending: of one k in F32 (fmaf), of 16 for BF16 (mma.m16n8k16), of 32 for block formats (mma.m16n8k32,
//   whose integer sum is exact, then one fmaf; one more where the format has minimums), of 128 for FP8
//   (four wgmma of E4M3 on Hopper, else eight mma.m16n8k16, then one fmaf: matmul_f8.h).
// - The segments' sums are added in ascending order, beginning with the first.
// Everything else is free: how many tokens a block has, whether it walks all segments itself or leaves sums
// in memory (where a segment has a block of its own, or a block's even share ends inside a tile; the last of
// a tile to arrive adds them up, still in order), whether mma.sync or wgmma makes a step of 16
// (matmul_wgmma.h: BF16 with many tokens on Hopper).
#pragma once

#include "backend/cuda/activation.h"
#include "backend/cuda/kernel.h"
#include "backend/cuda/norm_rows.h"
#include "backend/cuda/weight_layout.h"

namespace qiao::cuda {

inline constexpr int64_t kSegmentUnit = 256, kMostSegment = 1024;
// Up to kFewTokens rows of x: they are one column of mma's tiles, and the weight is read as memory gives it.
inline constexpr int kFewTokens = 8, kManyTokens = 64;
inline constexpr int kManyRows = 128;
// Up to so many are wgmma's few: blocks share the weight evenly (matmul_wgmma_walk.h).
inline constexpr int64_t kMostLineTokens = 128;
// A block of few tokens that may have so much shared memory has all of its warps, which norming rows takes.
inline constexpr int kNormSharedBytes = 220 * 1024;

// A token's scale in a group of 32 and the sums of its quants: of the first 16 in the low half, of the rest
// above. Of FP8 the scale of a block of 128 alone.
struct ActivationMeta {
  float scale;
  int sums;
};

struct MatmulArguments {
  WeightRows weight;         // of the first expert
  int64_t expert_bytes = 0;  // to the next
  int64_t first_row = 0, end_row = 0;
  // Rows of x [tokens, K]. counts: rows of each expert, or null: all are of one.
  const float* x = nullptr;
  int64_t x_stride = 0, tokens = 0;
  const int32_t* counts = nullptr;
  int experts = 1;
  RowNorm
      norm;  // of x's rows, by whoever rounds or quantizes them; with room of kNormSharedBytes, all of one
  // x as the tensor cores take it, rows of K rounded up (prepare.cu); where a block has many tokens.
  const uint8_t* prepared = nullptr;
  const ActivationMeta* meta = nullptr;
  int64_t prepared_columns = 0;
  // The sums.
  int64_t segment = 0, segments = 1;
  bool split = false;         // a block has one segment, gridDim.y of them
  float* partials = nullptr;  // [tiles, segments, sums of a block]
  unsigned* tickets = nullptr;
  int64_t token_tiles = 0, row_blocks = 0;
  bool line = false;  // matmul_wgmma_walk.h's: blocks have even shares of all segments
  int64_t grain = 1;  // units that are one block's, there and in matmul_few.h
  // matmul_few.h's: row tiles from first_tile on (where gated of gate), each with its own partials [row
  // tile][segment][token][row] and ticket; what follows the device's numbers is for it to set.
  int64_t first_tile = 0, row_tiles = 0;
  int multiprocessors = 1;
  int64_t block_shared_bytes = 0;
  int64_t slot_tokens = 0, panel_segments = 0;
  int log_warps = 0, log_sides = 0, share = 0;  // sides: gate and up, or one
  int64_t after_even = 0, after_odd = 0;        // bytes to the row tile that is walked next
  // y[t, column + row] = activation(sum + bias[column + row]) + residual[t, column + row].
  float* y = nullptr;
  int64_t y_stride = 0, column = 0;
  const float* bias = nullptr;
  const float* residual = nullptr;
  int64_t residual_stride = 0;
  Activation activation = Activation::kNone;
  float soft_cap = 0;
  // F of a weight of 2F rows, a multiple of 16, without residual: with z = sum + bias, y[t, f] =
  // activation(z[t, f]) * z[t, F + f], y [T, F]. 0: not so. Of the products by wgmma and of few tokens alone.
  int64_t gated = 0;
};

// Of each compute kind; `few`: kFewTokens tokens a block, else kManyTokens. matmul_f32.cu, matmul_bf16.cu,
// matmul_f8.cu and matmul_q8_*.cu. The grid is (row_blocks * token_tiles, split ? segments : 1), but for few
// in BF16, F8 and Q8.
void launch_matmul_f32(const Stream& stream, const MatmulArguments& arguments, bool few);
void launch_matmul_bf16(const Stream& stream, const MatmulArguments& arguments, bool few);
void launch_matmul_q8(const Stream& stream, const MatmulArguments& arguments, bool few);
void launch_matmul_f8(const Stream& stream, const MatmulArguments& arguments, bool few);
// BF16 on Hopper alone, matmul_wgmma.cu: token_tiles, row_blocks and line are its own (row_blocks is of
// kManyRows before). x is prepared for it alone, ceil8(tokens) * prepared_columns elements. partials has
// wgmma_partial_bytes of as many rows or more.
void launch_matmul_wgmma(const Stream& stream, MatmulArguments arguments);
void launch_prepare_wgmma(const Stream& stream, const MatmulArguments& arguments, uint8_t* prepared);
// The same of F8: prepared has the numbers, ceil8(tokens) * prepared_columns; meta their scales alone.
void launch_matmul_wgmma_f8(const Stream& stream, MatmulArguments arguments);
void launch_prepare_wgmma_f8(const Stream& stream, const MatmulArguments& arguments, uint8_t* prepared,
                             ActivationMeta* meta);
int64_t wgmma_partial_bytes(int64_t rows, int64_t segments, int64_t tokens, int64_t experts, bool gated);
// Rows of x, normed where they are to be, to BF16, or to quants or numbers of E4M3 and meta, `columns` a row:
// zeros from K on.
void launch_prepare_bf16(const Stream& stream, const MatmulArguments& arguments, uint8_t* prepared);
void launch_prepare_q8(const Stream& stream, const MatmulArguments& arguments, uint8_t* prepared,
                       ActivationMeta* meta);
void launch_prepare_f8(const Stream& stream, const MatmulArguments& arguments, uint8_t* prepared,
                       ActivationMeta* meta);

inline dim3 matmul_grid(const MatmulArguments& a) {
  return {static_cast<unsigned>(a.row_blocks * a.token_tiles),
          static_cast<unsigned>(a.split ? a.segments : 1), 1};
}

// Some rows of x that share an expert.
struct TokenTile {
  int64_t first = 0;
  int count = 0;  // 0: none
  int expert = 0;
};

// Tile `tile` of `size` rows, counted over the experts; by whole warps, the same in each lane.
__device__ inline TokenTile token_tile(const int32_t* counts, int experts, int64_t tokens, int64_t tile,
                                       int size) {
  if (counts == nullptr) {
    const int64_t left = tokens - tile * size;
    return {tile * size, static_cast<int>(left < size ? (left < 0 ? 0 : left) : size), 0};
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  int64_t rows_before = 0, tiles_before = 0;
  for (int base = 0; base < experts; base += 32) {
    const int count = base + lane < experts ? counts[base + lane] : 0;
    int rows = count, tiles = (count + size - 1) / size;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int more_rows = __shfl_up_sync(kAllLanes, rows, step);
      const int more_tiles = __shfl_up_sync(kAllLanes, tiles, step);
      if (lane >= step) rows += more_rows, tiles += more_tiles;
    }
    const uint32_t beyond = __ballot_sync(kAllLanes, tiles_before + tiles > tile);
    if (beyond != 0) {
      const int at = __ffs(static_cast<int>(beyond)) - 1;
      const int own = __shfl_sync(kAllLanes, count, at);
      const int64_t inside =
          tile - tiles_before - (__shfl_sync(kAllLanes, tiles, at) - (own + size - 1) / size);
      const int64_t left = own - inside * size;
      return {rows_before + __shfl_sync(kAllLanes, rows, at) - own + inside * size,
              static_cast<int>(left < size ? left : size), base + at};
    }
    rows_before += __shfl_sync(kAllLanes, rows, 31);
    tiles_before += __shfl_sync(kAllLanes, tiles, 31);
  }
  return {};
}

// Not inlined: it would come as often as a thread has sums.
QIAO_NO_INLINE __device__ inline float activate_sum(Activation activation, float soft_cap, float x) {
  switch (activation) {
    case Activation::kSilu:
      return activated<Activation::kSilu>(x);
    case Activation::kGelu:
      return activated<Activation::kGelu>(x);
    case Activation::kGeluTanh:
      return activated<Activation::kGeluTanh>(x);
    case Activation::kSoftCap:
      return activated<Activation::kSoftCap>(x, soft_cap);
    default:
      return x;
  }
}

// As activate_sum; of four, so that they are under way together.
QIAO_NO_INLINE __device__ inline float4 gate_sums(Activation activation, float4 gate, float4 up) {
  switch (activation) {
    case Activation::kSilu:
      return gated<Activation::kSilu>(gate, up);
    case Activation::kGelu:
      return gated<Activation::kGelu>(gate, up);
    default:
      return gated<Activation::kGeluTanh>(gate, up);
  }
}

__device__ inline void finish_sum(const MatmulArguments& op, int64_t token, int64_t row, float sum) {
  const int64_t n = op.column + row;
  if (op.bias != nullptr) sum += op.bias[n];
  if (op.activation != Activation::kNone) sum = activate_sum(op.activation, op.soft_cap, sum);
  if (op.residual != nullptr) sum += op.residual[token * op.residual_stride + n];
  op.y[token * op.y_stride + n] = sum;
}

// Where each segment of a tile has a block of its own: leaves this block's sums, and is true in all threads
// of the last block, whose sums then are those of all segments. kThreads threads with kSums each.
template <int kThreads, int kSums>
__device__ inline bool add_segments(const MatmulArguments& op, float (&sums)[kSums]) {
  const int64_t tile = blockIdx.x;
  float* partial = op.partials + tile * op.segments * (kThreads * kSums) + threadIdx.x;
  float* own = partial + int64_t{blockIdx.y} * (kThreads * kSums);
#pragma unroll
  for (int i = 0; i < kSums; ++i) own[i * kThreads] = sums[i];
  QIAO_SHARED(int, is_last, 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last[0] = atomicAdd(op.tickets + tile, 1u) == static_cast<unsigned>(op.segments - 1) ? 1 : 0;
    if (is_last[0] != 0) op.tickets[tile] = 0;  // for the next launch
  }
  __syncthreads();
  if (is_last[0] == 0) return false;
  __threadfence();
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = __ldcg(partial + i * kThreads);
  for (int64_t s = 1; s < op.segments; ++s) {
    const float* next = partial + s * (kThreads * kSums);
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += __ldcg(next + i * kThreads);
  }
  return true;
}

}  // namespace qiao::cuda
