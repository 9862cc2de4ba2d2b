// The products of a way back in FP8: operands of E4M3 with a scale for 128 numbers (ops/linear.h, kF8).
//
// dx = dy W is the forward pass's own product, matmul.h's, with W^T: its bytes turned, and its scales, which
// are of 128 x 128 and so stay exact; a row's bits are a function of N, K and the row. Segments of W whose
// rows are no whole blocks are filled up with zeros, and dy's columns then are, too.
//
// dw += dy^T x is that product again where all rows are one expert's: x^T is made the weight, quantized by
// columns in blocks of 128 tokens, and dy^T its rows. With experts each has a depth of its own, which the
// device alone knows: there both are quantized as they lie, for weight_gradient.h.
//
// Plan: a block of threads has 128 tokens by 64 columns in registers, or 128 x 128 numbers of W in shared
// memory; the limit is reading. For each product one pass is more than need be: dy's columns are turned as
// F32, as the product takes rows of F32 and quantizes them itself. Not yet run on a device, so not timed.
#include <algorithm>

#include "backend/cuda/activation_rows.h"
#include "backend/cuda/gradient.h"
#include "backend/cuda/matmul_call.h"
#include "backend/cuda/weight_gradient.h"

namespace qiao::cuda {
namespace {

constexpr int kThreads = 256, kBlock = static_cast<int>(kF8Block);
constexpr int kTileBytes = tile_layout(DType::kF8_128).bytes();

// Word `word` of an F8_128 tile: which row, and which four of its numbers (f8_word).
struct TileWord {
  int row, four;
};
__device__ inline TileWord tile_word(int word) {
  const int piece = word % 128 / 4;
  return {piece / 4 + word % 2 * 8, word / 128 * 8 + piece % 4 + word / 2 % 2 * 4};
}

// W^T of one segment.
struct TurnWeight {
  const uint8_t* from = nullptr;  // tiles of the panel
  int64_t from_units = 0, from_expert = 0;
  int64_t first = 0, rows = 0;  // the segment, in the panel
  uint8_t* to = nullptr;
  int64_t to_units = 0, to_expert = 0;
  int64_t first_unit = 0;  // of the segment's rows, turned
  const int32_t* counts = nullptr;
};

// A block of threads has 128 x 128 numbers: row b of squares (blockIdx.x / from_units), unit of K.
__global__ void __launch_bounds__(kThreads) turn_weight(const __grid_constant__ TurnWeight op) {
  begin_kernel();
  if (op.counts != nullptr && op.counts[blockIdx.y] == 0) return;
  constexpr int kPitch = kBlock / 4 + 1;  // words
  QIAO_SHARED(uint32_t, square, kBlock * kPitch);
  const int64_t unit = blockIdx.x % op.from_units, b = blockIdx.x / op.from_units;
  const auto thread = static_cast<int>(threadIdx.x);
  const auto tile_of = [&](int64_t n) {
    return op.from + blockIdx.y * op.from_expert + (n / kTileRows * op.from_units + unit) * kTileBytes;
  };
  const int64_t first = op.first + b * kBlock;
#pragma unroll 4
  for (int i = 0; i < kBlock * kBlock / 4 / kThreads; ++i) {
    const int item = i * kThreads + thread;
    const int row = item / 32 % 16 * 8 + item % 32 / 4, four = item / 512 * 4 + item % 4;
    const int64_t n = first + row;
    uint32_t numbers = 0;
    if (b * kBlock + row < op.rows) {
      const int at = f8_word(static_cast<int>(n % kTileRows), four);
      numbers = reinterpret_cast<const uint32_t*>(tile_of(n))[at];
    }
    square[row * kPitch + four] = numbers;
  }
  __syncthreads();
  uint8_t* to = op.to + blockIdx.y * op.to_expert +
                (unit * (kBlock / kTileRows) * op.to_units + op.first_unit + b) * kTileBytes;
  const int64_t to_next = op.to_units * kTileBytes;  // the next 16 rows of W^T
#pragma unroll 4
  for (int i = 0; i < kBlock * kBlock / 4 / kThreads; ++i) {
    const int item = i * kThreads + thread, tile = item / 512;
    const TileWord word = tile_word(item % 512);
    const int k = tile * kTileRows + word.row;
    uint32_t numbers = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n)
      numbers |= (square[(4 * word.four + n) * kPitch + k / 4] >> (8 * (k % 4)) & 255u) << (8 * n);
    reinterpret_cast<uint32_t*>(to + tile * to_next)[item % 512] = numbers;
  }
  if (thread >= kBlock) return;
  const auto in_tile = static_cast<int>(first % kTileRows);
  reinterpret_cast<float*>(to + thread / kTileRows * to_next + kF8ScalesAt)[thread % kTileRows] =
      reinterpret_cast<const float*>(tile_of(first) + kF8ScalesAt)[in_tile];
}

// Columns of a segment of dy, with zeros behind them: rows [tokens, pitch].
struct FillUp {
  const float* dy = nullptr;  // from the segment's first column on
  int64_t stride = 0, tokens = 0, width = 0;
  float* to = nullptr;
  int64_t to_width = 0, pitch = 0;
};

__global__ void __launch_bounds__(kThreads) fill_up(FillUp op) {
  begin_kernel();
  const int64_t count = op.tokens * op.to_width, step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t t = i / op.to_width, n = i % op.to_width;
    op.to[t * op.pitch + n] = n < op.width ? op.dy[t * op.stride + n] : 0.0f;
  }
}

// Rows of F32, of which 128 tokens or fewer that share a block of scales.
struct TokenRows {
  const float* rows = nullptr;  // [tokens, width]
  int64_t stride = 0, tokens = 0, width = 0;
  const int32_t* counts = nullptr;
  int experts = 1;
};

constexpr int kColumns = 64,
              kOwn = kBlock / (kThreads / (kColumns / 4));  // columns of a block, tokens of a thread

// What a thread has of a block of threads' 128 tokens by 64 columns: tokens i * 16 + thread / 16, four
// columns from thread % 16 * 4 on. Numbers of E4M3, four in a word, and their columns' scales.
struct Quantized {
  uint32_t numbers[kOwn];
  float scales[4];
};

__device__ inline Quantized quantize_columns(const TokenRows& op, int64_t first, int count, int64_t column) {
  QIAO_SHARED(unsigned, largest, kThreads / (kColumns / 4) * kColumns);
  const int own = static_cast<int>(threadIdx.x % 16) * 4, line = static_cast<int>(threadIdx.x / 16);
  const bool aligned = aligned_16(op.rows) && op.stride % 4 == 0;
  float4 values[kOwn];
  unsigned most[4] = {};
  const auto meet = [](unsigned& so_far, float x) { so_far = max(so_far, __float_as_uint(x) & 0x7fffffffu); };
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int t = i * 16 + line;
    values[i] = t < count ? load_four(op.rows + (first + t) * op.stride, column + own, op.width, aligned)
                          : make_float4(0, 0, 0, 0);
    meet(most[0], values[i].x), meet(most[1], values[i].y);
    meet(most[2], values[i].z), meet(most[3], values[i].w);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) largest[line * kColumns + own + c] = most[c];
  __syncthreads();
  Quantized made;
  float inverse[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    unsigned of_column = 0;
#pragma unroll
    for (int i = 0; i < kThreads / 16; ++i) of_column = max(of_column, largest[i * kColumns + own + c]);
    const F8Scale scale(of_column);
    made.scales[c] = scale.scale, inverse[c] = scale.inverse;
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const float4 v = values[i];
    made.numbers[i] = e4m3_of(v.x * inverse[0]) | uint32_t{e4m3_of(v.y * inverse[1])} << 8 |
                      uint32_t{e4m3_of(v.z * inverse[2])} << 16 | uint32_t{e4m3_of(v.w * inverse[3])} << 24;
  }
  return made;
}

// x^T as tiles of a weight [width, tokens]: blockIdx.x tells the tokens, blockIdx.y the columns, of which
// there are whole blocks of 16.
__global__ void __launch_bounds__(kThreads)
    quantize_to_tiles(const __grid_constant__ TokenRows op, uint8_t* out, int64_t units) {
  begin_kernel();
  constexpr int kPitch = kBlock + 4;
  QIAO_SHARED(uint8_t, turned, kColumns * kPitch);
  const int64_t first = int64_t{blockIdx.x} * kBlock, column = int64_t{blockIdx.y} * kColumns;
  const int64_t left = op.tokens - first;
  const Quantized made = quantize_columns(op, first, static_cast<int>(left < kBlock ? left : kBlock), column);
  const int own = static_cast<int>(threadIdx.x % 16) * 4, line = static_cast<int>(threadIdx.x / 16);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c)
      turned[(own + c) * kPitch + i * 16 + line] = static_cast<uint8_t>(made.numbers[i] >> (8 * c));
  }
  __syncthreads();
  const auto tile_at = [&](int tile) {
    return out + ((column / kTileRows + tile) * units + blockIdx.x) * kTileBytes;
  };
#pragma unroll 4
  for (int i = 0; i < kColumns * kBlock / 4 / kThreads; ++i) {
    const int item = i * kThreads + static_cast<int>(threadIdx.x), tile = item / 512;
    if (column + tile * kTileRows >= op.width) break;
    const TileWord word = tile_word(item % 512);
    reinterpret_cast<uint32_t*>(tile_at(tile))[item % 512] =
        *reinterpret_cast<const uint32_t*>(turned + (tile * kTileRows + word.row) * kPitch + 4 * word.four);
  }
  if (line != 0 || column + own >= op.width) return;
#pragma unroll
  for (int c = 0; c < 4; ++c)
    reinterpret_cast<float*>(tile_at(own / kTileRows) + kF8ScalesAt)[(own + c) % kTileRows] = made.scales[c];
}

// As they lie, as BF16 rows of `padded` numbers, with the scales of each block of an expert's tokens.
__global__ void __launch_bounds__(kThreads)
    quantize_as_they_lie(const __grid_constant__ TokenRows op, int64_t padded, uint8_t* out, float* scales) {
  begin_kernel();
  const TokenTile tile = token_tile(op.counts, op.experts, op.tokens, blockIdx.x, kBlock);
  if (tile.count == 0) return;
  const int64_t column = int64_t{blockIdx.y} * kColumns;
  const Quantized made = quantize_columns(op, tile.first, tile.count, column);
  const int own = static_cast<int>(threadIdx.x % 16) * 4, line = static_cast<int>(threadIdx.x / 16);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int t = i * 16 + line;
    if (t >= tile.count) continue;
    float four[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) four[c] = float_of_e4m3(static_cast<uint8_t>(made.numbers[i] >> (8 * c)));
    *reinterpret_cast<uint2*>(out + ((tile.first + t) * padded + column + own) * 2) =
        make_uint2(two_bf16(four[0], four[1]), two_bf16(four[2], four[3]));
  }
  if (line != 0) return;
  *reinterpret_cast<float4*>(scales + blockIdx.x * padded + column + own) =
      make_float4(made.scales[0], made.scales[1], made.scales[2], made.scales[3]);
}

// Rows [tokens, width] to [width, pitch], zeros from `tokens` on.
__global__ void __launch_bounds__(kThreads)
    turn_rows(const __grid_constant__ TokenRows op, float* out, int64_t pitch) {
  begin_kernel();
  QIAO_SHARED(float, square, 32 * 33);
  const int64_t token = int64_t{blockIdx.x} * 32, column = int64_t{blockIdx.y} * 32;
  const int across = static_cast<int>(threadIdx.x % 32), line = static_cast<int>(threadIdx.x / 32);
#pragma unroll
  for (int i = line; i < 32; i += kThreads / 32) {
    const bool there = token + i < op.tokens && column + across < op.width;
    square[i * 33 + across] = there ? op.rows[(token + i) * op.stride + column + across] : 0.0f;
  }
  __syncthreads();
#pragma unroll
  for (int i = line; i < 32; i += kThreads / 32) {
    if (column + i < op.width) out[(column + i) * pitch + token + across] = square[across * 33 + i];
  }
}

int64_t whole_blocks(int64_t count) { return ceil_div(count, kF8Block) * kF8Block; }

// Columns of W^T, and whether dy has them as they are.
struct Turned {
  int64_t columns = 0;
  bool fills_up = false;
};
Turned turned_columns(const Weight& weight) {
  Turned turned;
  for (const Weight::Segment& segment : weight.segments()) {
    turned.columns += whole_blocks(segment.rows);
    turned.fills_up |= segment.rows % kF8Block != 0;
  }
  return turned;
}

int64_t float_bytes(int64_t rows, int64_t columns) {
  return up(rows * columns * static_cast<int64_t>(sizeof(float)));
}

int64_t input_gradient_bytes(const Weight& weight, int64_t tokens) {
  const Turned turned = turned_columns(weight);
  const CudaWeight w = weight_in(nullptr, DType::kF8_128, weight.experts(), weight.columns(), turned.columns);
  return up(static_cast<int64_t>(w.bytes())) + (turned.fills_up ? float_bytes(tokens, turned.columns) : 0) +
         static_cast<int64_t>(matmul_workspace_bytes(w, Compute::kF8, tokens));
}

int64_t weight_gradient_bytes(const Weight& weight, int64_t tokens) {
  if (tokens == 0) return 0;
  const int64_t rows = weight.rows(), columns = weight.columns(), experts = weight.experts();
  if (experts > 1) {
    const int64_t padded = rounded_columns(rows) + rounded_columns(columns),
                  blocks = tokens / kF8Block + experts;
    return up(tokens * rounded_columns(rows) * 2) + up(tokens * rounded_columns(columns) * 2) +
           float_bytes(blocks, padded);
  }
  const CudaWeight w = weight_in(nullptr, DType::kF8_128, 1, columns, whole_blocks(tokens));
  return up(static_cast<int64_t>(w.bytes())) + float_bytes(rows, whole_blocks(tokens)) +
         static_cast<int64_t>(matmul_workspace_bytes(w, Compute::kF8, rows));
}

void run_of_one(const CudaBackend& chip, const WeightGradientArguments& op, std::byte* workspace) {
  const Stream& stream = chip.stream();
  const int64_t depth = whole_blocks(op.tokens), units = depth / kF8Block;
  const CudaWeight weight = weight_in(workspace, DType::kF8_128, 1, op.columns, depth);
  auto* dy = reinterpret_cast<float*>(workspace + up(static_cast<int64_t>(weight.bytes())));
  launch("linear_backward", stream, quantize_to_tiles,
         dim3(static_cast<unsigned>(units), blocks_for(op.columns, kColumns)), kThreads, 0,
         TokenRows{op.x, op.x_stride, op.tokens, op.columns}, reinterpret_cast<uint8_t*>(workspace), units);
  launch("linear_backward", stream, turn_rows, dim3(blocks_for(depth, 32), blocks_for(op.rows, 32)), kThreads,
         0, TokenRows{op.dy, op.dy_stride, op.tokens, op.rows}, dy, depth);
  stream.hold_next();
  MatmulCall call;
  call.weight = &weight, call.end_row = op.columns, call.compute = Compute::kF8;
  call.x = dy, call.x_stride = depth, call.tokens = op.rows;
  call.y = op.dw, call.y_stride = op.columns, call.residual = op.dw, call.residual_stride = op.columns;
  run_matmul(chip, call, reinterpret_cast<std::byte*>(dy) + float_bytes(op.rows, depth));
}

}  // namespace

size_t f8_gradient_bytes(const Weight& weight, int64_t tokens) {
  return static_cast<size_t>(
      std::max(input_gradient_bytes(weight, tokens), weight_gradient_bytes(weight, tokens)));
}

void run_input_gradient_f8(const CudaBackend& chip, const CudaWeight& weight, const GradientArguments& op,
                           std::byte* workspace) {
  if (op.tokens == 0) return;
  const Stream& stream = chip.stream();
  const Turned turned = turned_columns(weight);
  const CudaWeight made =
      weight_in(workspace, DType::kF8_128, weight.experts(), weight.columns(), turned.columns);
  std::byte* rest = workspace + up(static_cast<int64_t>(made.bytes()));
  auto* filled = reinterpret_cast<float*>(rest);
  int64_t at = 0;  // of a segment, in the columns of W^T
  for (const Weight::Segment& segment : weight.segments()) {
    const int64_t width = whole_blocks(segment.rows);
    TurnWeight turn;
    turn.from = op.weight.tiles, turn.from_units = op.weight.units, turn.from_expert = op.expert_bytes;
    turn.first = segment.first_row, turn.rows = segment.rows;
    turn.to = reinterpret_cast<uint8_t*>(workspace), turn.to_units = turned.columns / kF8Block;
    turn.to_expert = static_cast<int64_t>(made.expert_bytes()), turn.first_unit = at / kF8Block;
    turn.counts = op.counts;
    launch("linear_backward", stream, turn_weight,
           dim3(static_cast<unsigned>(width / kF8Block * op.weight.units), static_cast<unsigned>(op.experts)),
           kThreads, 0, turn);
    if (turned.fills_up) {
      launch("linear_backward", stream, fill_up, blocks_for(op.tokens * width, kThreads), kThreads, 0,
             FillUp{op.dy + segment.first_row, op.dy_stride, op.tokens, segment.rows, filled + at, width,
                    turned.columns});
    }
    at += width;
  }
  stream.hold_next();
  MatmulCall call;
  call.weight = &made, call.end_row = weight.columns(), call.compute = Compute::kF8;
  call.x = op.dy, call.x_stride = op.dy_stride;
  if (turned.fills_up) {
    call.x = filled, call.x_stride = turned.columns;
    rest += float_bytes(op.tokens, turned.columns);
  }
  call.tokens = op.tokens, call.counts = op.counts;
  call.y = op.dx, call.y_stride = op.dx_stride;
  if (op.add) call.residual = op.dx, call.residual_stride = op.dx_stride;
  run_matmul(chip, call, rest);
}

void run_weight_gradient_f8(const CudaBackend& chip, const WeightGradientArguments& op,
                            std::byte* workspace) {
  if (op.tokens == 0) return;
  if (op.experts == 1) return run_of_one(chip, op, workspace);
  const int64_t dy_columns = rounded_columns(op.rows), x_columns = rounded_columns(op.columns);
  const int64_t blocks = op.tokens / kF8Block + op.experts;
  auto* dy = reinterpret_cast<uint8_t*>(workspace);
  uint8_t* x = dy + up(op.tokens * dy_columns * 2);
  auto* dy_scales = reinterpret_cast<float*>(x + up(op.tokens * x_columns * 2));
  float* x_scales = dy_scales + blocks * dy_columns;
  const auto quantize = [&](const TokenRows& rows, int64_t padded, uint8_t* out, float* scales) {
    launch("linear_backward", chip.stream(), quantize_as_they_lie,
           dim3(static_cast<unsigned>(blocks), blocks_for(padded, kColumns)), kThreads, 0, rows, padded, out,
           scales);
  };
  quantize({op.dy, op.dy_stride, op.tokens, op.rows, op.counts, op.experts}, dy_columns, dy, dy_scales);
  quantize({op.x, op.x_stride, op.tokens, op.columns, op.counts, op.experts}, x_columns, x, x_scales);
  DwArguments a;
  a.dy = dy, a.dy_pitch = 2 * dy_columns, a.dy_scales = dy_scales;
  a.x = x, a.x_pitch = 2 * x_columns, a.x_scales = x_scales;
  a.tokens = op.tokens, a.rows = op.rows, a.columns = op.columns, a.counts = op.counts, a.dw = op.dw;
  launch_dw<SmallDw, true>(chip.stream(), op.experts, a);
}

}  // namespace qiao::cuda
