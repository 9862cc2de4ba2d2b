// The products of a way back in BF16, by tensor cores.
//
// dx = dy W is the forward pass's own product, matmul.h's, with W^T, by its kernels and in its order: a row's
// bits are a function of N, K and the row, whatever the batch. W^T is made first, tile by tile, in the
// workspace: one pass over the weight, 4 bytes an element, which T tokens make up for with T multiply-adds.
//
// dw += dy^T x. Where all rows are one expert's and the device is Hopper, it is the forward pass's product
// again: x^T is made the weight, in tiles, and dy^T its tokens, as matmul_wgmma.h takes them, each in one
// pass that rounds and turns; all of T is one segment, so that a block has 256 rows of dw by 128 columns.
//
// Elsewhere dy and x are rounded as they lie, one pass over each, for weight_gradient.h.
//
// In both a sum is one chain of steps of 16 tokens, from the expert's first on, to which what dw held is
// added last: an order of T alone. The limit is the tensor cores. Not yet run on a device, so not timed.
#include <algorithm>

#include "backend/cuda/activation_rows.h"
#include "backend/cuda/gradient.h"
#include "backend/cuda/matmul_call.h"
#include "backend/cuda/weight_gradient.h"

namespace qiao::cuda {
namespace {

constexpr int kTransposeWarps = 8;
constexpr int kTilePitch = 48;  // bytes of a row of 16: eight rows meet each bank once

// Tiles of 16 x 16, a warp each: those of `from` of rows and columns to those of `to` of columns and rows.
__global__ void __launch_bounds__(32 * kTransposeWarps)
    transpose_tiles(const uint8_t* from, int64_t from_units, int64_t from_expert, int64_t row_tiles,
                    uint8_t* to, int64_t to_expert, const int32_t* counts) {
  begin_kernel();
  if (counts != nullptr && counts[blockIdx.y] == 0) return;
  QIAO_SHARED(uint8_t, tiles, kTransposeWarps * kTileRows * kTilePitch);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  uint8_t* tile = tiles + warp * (kTileRows * kTilePitch);
  uint8_t* word = tile + lane / 4 * kTilePitch + lane % 4 * 4;
  const uint8_t* row = tile + (lane % 8 + lane / 16 * 8) * kTilePitch + lane / 8 % 2 * 16;
  from += blockIdx.y * from_expert, to += blockIdx.y * to_expert;
  const int64_t count = row_tiles * from_units;
  for (int64_t i = int64_t{blockIdx.x} * kTransposeWarps + warp; i < count;
       i += int64_t{gridDim.x} * kTransposeWarps) {
    const int64_t r = i / from_units, unit = i % from_units;
    const uint4 four = *reinterpret_cast<const uint4*>(from + i * 512 + lane * 16);
    *reinterpret_cast<uint32_t*>(word) = four.x;
    *reinterpret_cast<uint32_t*>(word + 8 * kTilePitch) = four.y;
    *reinterpret_cast<uint32_t*>(word + 16) = four.z;
    *reinterpret_cast<uint32_t*>(word + 8 * kTilePitch + 16) = four.w;
    __syncwarp();
    uint32_t turned[4];
    load_matrices_transposed(turned, row);
    *reinterpret_cast<uint4*>(to + (unit * row_tiles + r) * 512 + lane * 16) =
        make_uint4(turned[0], turned[1], turned[2], turned[3]);
    __syncwarp();
  }
}

// Tokens that are turned at a time, and columns: a block's.
constexpr int kTurn = 64, kTurnThreads = 256;

// A block of kTurn tokens by kTurn columns of F32 rows, as pairs of tokens of BF16: pairs[t / 2][column],
// rows of kPitch words. Zeros from `tokens` and from `width` on.
template <int kPitch>
__device__ inline void load_pairs(const float* rows, int64_t stride, int64_t tokens, int64_t width,
                                  int64_t token, int64_t column, uint32_t* pairs) {
  const bool aligned = aligned_16(rows) && stride % 4 == 0;
  const int64_t k = column + static_cast<int>(threadIdx.x % 16) * 4;
#pragma unroll
  for (int i = 0; i < kTurn / 2 / (kTurnThreads / 16); ++i) {
    const int pair = static_cast<int>(threadIdx.x / 16) + i * (kTurnThreads / 16);
    const int64_t t = token + 2 * pair;
    float4 first = make_float4(0, 0, 0, 0), second = first;
    if (t < tokens) first = load_four(rows + t * stride, k, width, aligned);
    if (t + 1 < tokens) second = load_four(rows + (t + 1) * stride, k, width, aligned);
    uint32_t* to = pairs + pair * kPitch + threadIdx.x % 16 * 4;
    to[0] = two_bf16(first.x, second.x), to[1] = two_bf16(first.y, second.y);
    to[2] = two_bf16(first.z, second.z), to[3] = two_bf16(first.w, second.w);
  }
  __syncthreads();
}

struct TurnArguments {
  const float* rows;  // [tokens, width]
  int64_t stride, tokens, width;
  const int32_t* count;  // of tokens, where the device alone knows it, or null
  uint8_t* out;
  __device__ int64_t counted() const { return count == nullptr || *count > tokens ? tokens : *count; }
};

// To tiles of 16 columns by 16 tokens (weight_layout.h): a weight [width, tokens].
__global__ void __launch_bounds__(kTurnThreads) turn_to_tiles(const __grid_constant__ TurnArguments op) {
  begin_kernel();
  constexpr int kPitch = kTurn + 8;  // a lane 4 g + j reads words [j][g] of eight banks each
  QIAO_SHARED(uint32_t, pairs, kTurn / 2 * kPitch);
  const int64_t token = int64_t{blockIdx.x} * kTurn, column = int64_t{blockIdx.y} * kTurn;
  load_pairs<kPitch>(op.rows, op.stride, op.counted(), op.width, token, column, pairs);
  const int64_t units = ceil_div(op.tokens, 16), tiles = ceil_div(op.width, kTileRows);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int tile = warp + 8 * i;
    const int64_t unit = token / 16 + tile % 4, row_tile = column / kTileRows + tile / 4;
    if (unit >= units || row_tile >= tiles) continue;
    const uint32_t* from = pairs + (tile % 4 * 8 + lane % 4) * kPitch + tile / 4 * 16 + lane / 4;
    *reinterpret_cast<uint4*>(op.out + (row_tile * units + unit) * 512 + lane * 16) =
        make_uint4(from[0], from[8], from[4 * kPitch], from[4 * kPitch + 8]);
  }
}

// To what matmul_wgmma.cu's prepare_pieces makes of tokens: here of columns.
__global__ void __launch_bounds__(kTurnThreads) turn_to_pieces(const __grid_constant__ TurnArguments op) {
  begin_kernel();
  constexpr int kPitch = kTurn + 1;  // eight lanes read the pieces of a column, four columns a warp
  QIAO_SHARED(uint32_t, pairs, kTurn / 2 * kPitch);
  const int64_t token = int64_t{blockIdx.x} * kTurn, column = int64_t{blockIdx.y} * kTurn;
  load_pairs<kPitch>(op.rows, op.stride, op.counted(), op.width, token, column, pairs);
  const int64_t padded = ceil_div(op.width, 8) * 8;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int own = static_cast<int>(threadIdx.x / 8) + 32 * i, piece = static_cast<int>(threadIdx.x % 8);
    if (column + own >= padded) continue;
    const uint32_t* from = pairs + 4 * piece * kPitch + own;
    *reinterpret_cast<uint4*>(op.out +
                              ((token / kTurn * padded + column + own) * 8 + (piece ^ own % 8)) * 16) =
        make_uint4(from[0], from[kPitch], from[2 * kPitch], from[3 * kPitch]);
  }
}

void round_rows(const Stream& stream, const float* rows, int64_t stride, int64_t tokens, int64_t columns,
                uint8_t* rounded) {
  MatmulArguments a;
  a.x = rows, a.x_stride = stride, a.tokens = tokens;
  a.weight.columns = columns, a.prepared_columns = rounded_columns(columns);
  launch_prepare_bf16(stream, a, rounded);
}

// x^T and dy^T.
int64_t tile_bytes(int64_t columns, int64_t tokens) {
  return up(ceil_div(columns, kTileRows) * ceil_div(tokens, 16) * 512);
}
int64_t turned_bytes(int64_t rows, int64_t columns, int64_t tokens) {
  return tile_bytes(columns, tokens) + ceil_div(rows, 8) * 8 * rounded_columns(tokens) * 2;
}

// By wgmma: the weight is x^T, the tokens are rows of dw.
void run_turned(const Stream& stream, const WeightGradientArguments& op, std::byte* workspace) {
  auto* tiles = reinterpret_cast<uint8_t*>(workspace);
  uint8_t* pieces = tiles + tile_bytes(op.columns, op.tokens);
  const auto grid = [&](int64_t width) {
    return dim3(blocks_for(op.tokens, kTurn), blocks_for(width, kTurn));
  };
  launch("linear_backward", stream, turn_to_tiles, grid(op.columns), kTurnThreads, 0,
         TurnArguments{op.x, op.x_stride, op.tokens, op.columns, op.counts, tiles});
  launch("linear_backward", stream, turn_to_pieces, grid(op.rows), kTurnThreads, 0,
         TurnArguments{op.dy, op.dy_stride, op.tokens, op.rows, op.counts, pieces});
  stream.hold_next();
  MatmulArguments a;
  a.weight = {tiles, DType::kBF16, op.columns, op.tokens, ceil_div(op.tokens, 16)};
  a.end_row = op.columns, a.row_blocks = ceil_div(op.columns, kManyRows);
  a.tokens = op.rows, a.prepared = pieces, a.prepared_columns = rounded_columns(op.tokens);
  a.segment = ceil_div(op.tokens, kSegmentUnit) * kSegmentUnit;
  a.y = op.dw, a.y_stride = op.columns, a.residual = op.dw, a.residual_stride = op.columns;
  launch_matmul_wgmma(stream, a);
}

}  // namespace

size_t bf16_gradient_bytes(int64_t experts, int64_t rows, int64_t columns, int64_t tokens) {
  const CudaWeight weight = weight_in(nullptr, DType::kBF16, experts, columns, rows);
  const auto of_dx =
      static_cast<int64_t>(weight.bytes() + matmul_workspace_bytes(weight, Compute::kBF16, tokens));
  const int64_t of_dw = up(tokens * rounded_columns(rows) * 2) + up(tokens * rounded_columns(columns) * 2);
  return static_cast<size_t>(std::max({of_dx, of_dw, turned_bytes(rows, columns, tokens)}));
}

void run_input_gradient_bf16(const CudaBackend& chip, const GradientArguments& op, std::byte* workspace) {
  if (op.tokens == 0) return;
  const int64_t rows = op.end_row - op.first_row, columns = op.weight.columns;
  const CudaWeight weight = weight_in(workspace, DType::kBF16, op.experts, columns, rows);
  const int64_t row_tiles = ceil_div(rows, kTileRows), tiles = row_tiles * op.weight.units;
  launch("linear_backward", chip.stream(), transpose_tiles,
         dim3(static_cast<unsigned>(std::min<int64_t>(ceil_div(tiles, kTransposeWarps), 8192)),
              static_cast<unsigned>(op.experts)),
         32 * kTransposeWarps, 0, op.weight.tiles + op.first_row / kTileRows * op.weight.units * 512,
         op.weight.units, op.expert_bytes, row_tiles, reinterpret_cast<uint8_t*>(workspace),
         static_cast<int64_t>(weight.expert_bytes()), op.counts);
  chip.stream().hold_next();
  MatmulCall call;
  call.weight = &weight, call.end_row = columns, call.compute = Compute::kBF16;
  call.x = op.dy + op.column + op.first_row, call.x_stride = op.dy_stride;
  call.tokens = op.tokens, call.counts = op.counts;
  call.y = op.dx, call.y_stride = op.dx_stride;
  if (op.add) call.residual = op.dx, call.residual_stride = op.dx_stride;
  run_matmul(chip, call, workspace + weight.bytes());
}

void run_weight_gradient_bf16(const CudaBackend& chip, const WeightGradientArguments& op,
                              std::byte* workspace) {
  if (op.tokens == 0) return;
  const Stream& stream = chip.stream();
  if (op.experts == 1 && stream.compute_major() == 9) return run_turned(stream, op, workspace);
  auto* dy = reinterpret_cast<uint8_t*>(workspace);
  uint8_t* x = dy + up(op.tokens * rounded_columns(op.rows) * 2);
  round_rows(stream, op.dy, op.dy_stride, op.tokens, op.rows, dy);
  round_rows(stream, op.x, op.x_stride, op.tokens, op.columns, x);
  DwArguments a;
  a.dy = dy, a.dy_pitch = 2 * rounded_columns(op.rows);
  a.x = x, a.x_pitch = 2 * rounded_columns(op.columns);
  a.tokens = op.tokens, a.rows = op.rows, a.columns = op.columns, a.counts = op.counts, a.dw = op.dw;
  const int64_t large = ceil_div(op.rows, LargeDw::kRows) * ceil_div(op.columns, LargeDw::kColumns);
  large* op.experts >= kFewDwBlocks&& LargeDw::kSharedBytes <= chip.block_shared_bytes()
      ? launch_dw<LargeDw, false>(stream, op.experts, a)
      : launch_dw<SmallDw, false>(stream, op.experts, a);
}

}  // namespace qiao::cuda
