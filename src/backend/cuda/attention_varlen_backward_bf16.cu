// attention_varlen_backward in BF16, by attention_gradient.h's two passes. q, k, v and dout are rounded
// first, row by row, in the workspace; scores are made again of what the forward pass in kBF16 made them of.
// Seven products of 16 bits in all (a single pass with atomics has five), where TF32 in three parts has the
// time of forty-two.
//
// Plan of a warp: its 16 rows stay in shared memory, blocks of kBlock rows come by cp.async, two stages in
// turn, for all warps of the block. ldmatrix meets no bank twice (a row is padded by 16 bytes); p and ds are
// operands where they were made. Sums are 16 × D floats in registers for each result (dk and dv: twice that,
// but for D above 128, where each has a launch of its own). Limit: shared memory, which gives a warp of 16
// rows 40 KB (dq: 32) for what the tensor cores do in three fifths of that time: 260 TFLOP/s of an H200,
// counted as five products. Prediction: half of that. Not yet run on a device.
#include <algorithm>

#include "backend/cuda/activation_rows.h"
#include "backend/cuda/attention_gradient.h"

namespace qiao::cuda {
namespace {

// A row of q, dout, k or v (by blockIdx.y) of one head, a warp each, two elements a lane at a time.
template <int kD>
__global__ void __launch_bounds__(128) round_gradient_rows(const __grid_constant__ AttentionGradients op) {
  begin_kernel();
  const int which = static_cast<int>(blockIdx.y);
  const int heads = which < 2 ? op.heads : op.heads / op.share;
  const int64_t item = int64_t{blockIdx.x} * 4 + threadIdx.x / 32;
  if (item >= op.tokens * heads) return;
  const GradientRows& rows = which == 0 ? op.q : which == 1 ? op.dout : which == 2 ? op.k : op.v;
  const RoundedRows& to = op.rounded;
  uint8_t* rounded = which == 0 ? to.q : which == 1 ? to.dout : which == 2 ? to.k : to.v;
  const float* from = rows.row(item / heads, static_cast<int>(item % heads));
  for (int d = static_cast<int>(threadIdx.x % 32) * 2; d < kD; d += 64) {
    const float x = d < op.dim ? from[d] : 0.0f, y = d + 1 < op.dim ? from[d + 1] : 0.0f;
    *reinterpret_cast<uint32_t*>(rounded + (item * kD + d) * 2) = two_bf16(x, y);
  }
}

template <int kD>
struct RoundedGradientShape {
  static constexpr int kBlock = kD <= 64 ? 64 : kD <= 128 ? 32 : 16, kTiles = kBlock / 8;
  static constexpr int kPitch = 2 * kD + 16;  // bytes of a row
  static constexpr int kPart = kBlock * kPitch, kStage = 2 * kPart;
  static constexpr int kRows = kWarpRows * kPitch;
  static constexpr int shared_bytes(int warps) { return 2 * kStage + warps * 2 * kRows; }
};

template <int kD, bool kQueries, bool kFirst, bool kSecond>
class RoundedGradientWarp : GradientTile<kD, kQueries> {
  using Tile = GradientTile<kD, kQueries>;
  using Tile::op_, Tile::lane_, Tile::begin_, Tile::shared_, Tile::first_row_, Tile::rows_, Tile::kOutTiles;
  using Shape = RoundedGradientShape<kD>;
  static constexpr int kBlock = Shape::kBlock, kTiles = Shape::kTiles, kPitch = Shape::kPitch;
  static constexpr int kPieces = kD / 8;  // of 16 bytes in a row

 public:
  __device__ RoundedGradientWarp(const AttentionGradients& op, const FoundTile& tile)
      : Tile(op, tile), own_(shared_ + 2 * Shape::kStage + threadIdx.x / 32 * 2 * Shape::kRows) {}

  __device__ void run() {
    load_rows();
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kFirst) first_[n][i] = 0;
        if constexpr (kSecond) second_[n][i] = 0;
      }
    }
    Tile::template walk<kBlock>([&](int stage, int at, int head) { copy_rows(stage, at, head); },
                                [&](int stage, int at) { add_block(stage, at); });
    if constexpr (kQueries) {
      Tile::store(op_.dq, first_);
    } else {
      if constexpr (kFirst) Tile::store(op_.dk, first_);
      if constexpr (kSecond) Tile::store(op_.dv, second_);
    }
  }

 private:
  // x and y; u and w.
  __device__ const uint8_t* own_part(int part) const {
    const RoundedRows& of = op_.rounded;
    return part == 0 ? (kQueries ? of.q : of.k) : (kQueries ? of.dout : of.v);
  }
  __device__ const uint8_t* passing_part(int part) const {
    const RoundedRows& of = op_.rounded;
    return part == 0 ? (kQueries ? of.k : of.q) : (kQueries ? of.v : of.dout);
  }

  __device__ void load_rows() {
    const int heads = kQueries ? op_.heads : op_.heads / op_.share;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint8_t* from = own_part(part);
      for (int item = lane_; item < kWarpRows * kPieces; item += 32) {
        const int i = item / kPieces, row = first_row_ + i, piece = item % kPieces * 16;
        uint4 four = make_uint4(0, 0, 0, 0);
        if (row < rows_) {
          const int64_t at = (Tile::row_token(row) * heads + Tile::row_head(row)) * (2 * kD) + piece;
          four = *reinterpret_cast<const uint4*>(from + at);
        }
        *reinterpret_cast<uint4*>(own_ + part * Shape::kRows + i * kPitch + piece) = four;
      }
    }
    __syncwarp();
  }

  __device__ void copy_rows(int stage, int at, int head) {
    const int heads = kQueries ? op_.heads / op_.share : op_.heads, of = Tile::passing_head(head);
    unsigned char* to = shared_ + stage * Shape::kStage;
    for (int item = threadIdx.x; item < kBlock * kPieces; item += blockDim.x) {
      const int row = item / kPieces, piece = item % kPieces * 16;
      const bool there = Tile::passes_by(at + row);
      const int64_t from = (int64_t{begin_ + (there ? at + row : 0)} * heads + of) * (2 * kD) + piece;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        copy_async<16>(to + part * Shape::kPart + row * kPitch + piece, passing_part(part) + from, there);
      }
    }
  }

  // Operand a of step k of this warp's rows; operands b of the same step of kTiles tiles of a block.
  __device__ void load_own(int part, int k, uint32_t (&a)[4]) const {
    load_matrices(a, own_ + part * Shape::kRows + lane_ % 16 * kPitch + 32 * k + lane_ / 16 * 16);
  }
  __device__ void load_two(const unsigned char* block, int n, int k, uint32_t (&b)[2][2]) const {
    uint32_t words[4];
    load_matrices(words, block + (8 * n + lane_ / 16 * 8 + lane_ % 8) * kPitch + 32 * k + lane_ / 8 % 2 * 16);
    b[0][0] = words[0], b[0][1] = words[1], b[1][0] = words[2], b[1][1] = words[3];
  }

  // x·u (part 0) or y·w (part 1).
  __device__ void multiply(int part, const unsigned char* block, float (&products)[kTiles][4]) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) products[n][i] = 0;
    }
    const int steps = (op_.dim + 15) / 16;
#pragma unroll 1
    for (int k = 0; k < steps; ++k) {
      uint32_t a[4];
      load_own(part, k, a);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t b[2][2];
        load_two(block, n, k, b);
        multiply_add_bf16(products[n], a, b[0]);
        multiply_add_bf16(products[n + 1], a, b[1]);
      }
    }
  }

  // sums += weights [16, kBlock] × block.
  __device__ void add(float (&sums)[kOutTiles][4], const float (&weights)[kTiles][4],
                      const unsigned char* block) const {
#pragma unroll
    for (int k = 0; k < kTiles / 2; ++k) {
      const float(&left)[4] = weights[2 * k];
      const float(&right)[4] = weights[2 * k + 1];
      const uint32_t a[4] = {two_bf16(left[0], left[1]), two_bf16(left[2], left[3]),
                             two_bf16(right[0], right[1]), two_bf16(right[2], right[3])};
      const unsigned char* rows = block + (16 * k + lane_ % 8 + lane_ / 8 % 2 * 8) * kPitch + lane_ / 16 * 16;
#pragma unroll
      for (int n = 0; n < kOutTiles; n += 2) {
        if (8 * n >= op_.dim) break;
        uint32_t words[4];
        load_matrices_transposed(words, rows + 16 * n);
        const uint32_t b[2][2] = {{words[0], words[1]}, {words[2], words[3]}};
        multiply_add_bf16(sums[n], a, b[0]);
        multiply_add_bf16(sums[n + 1], a, b[1]);
      }
    }
  }

  __device__ void add_block(int stage, int at) {
    const unsigned char* u = shared_ + stage * Shape::kStage;
    const unsigned char* w = u + Shape::kPart;
    float p[kTiles][4], slope[kTiles][4];
    multiply(0, u, p);
    Tile::template weights<kTiles>(p, slope, at);
    if constexpr (kSecond) add(second_, p, w);
    if constexpr (kFirst) {
      float ds[kTiles][4];
      multiply(1, w, ds);
      Tile::template gradients<kTiles>(ds, p, slope, at);
      add(first_, ds, u);
    }
  }

  unsigned char* own_;
  float first_[kFirst ? kOutTiles : 1][4];    // dq or dk
  float second_[kSecond ? kOutTiles : 1][4];  // dv
};

int64_t rounded_width(int64_t dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }
int64_t up(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

template <int kD>
void launch_rounded(const Stream& stream, int block_shared_bytes, const AttentionGradients& op) {
  launch("attention_varlen_backward", stream, round_gradient_rows<kD>,
         dim3(blocks_for(op.tokens * op.heads, 4), 4), 128, 0, op);
  launch_gradients<RoundedGradientWarp, RoundedGradientShape<kD>, kD>(stream, block_shared_bytes, op);
}

}  // namespace

int64_t gradient_rounded_bytes(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim) {
  const int64_t row = 2 * rounded_width(dim);
  return 2 * up(tokens * heads * row) + 2 * up(tokens * kv_heads * row);
}

void launch_rounded_gradients(const Stream& stream, int block_shared_bytes, AttentionGradients op,
                              std::byte* memory) {
  auto* at = reinterpret_cast<uint8_t*>(memory);
  const int64_t row = 2 * rounded_width(op.dim), rows = op.tokens * op.heads;
  for (uint8_t** part : {&op.rounded.q, &op.rounded.dout}) *part = at, at += up(rows * row);
  for (uint8_t** part : {&op.rounded.k, &op.rounded.v}) *part = at, at += up(rows / op.share * row);
  if (op.dim <= 64) return launch_rounded<64>(stream, block_shared_bytes, op);
  if (op.dim <= 128) return launch_rounded<128>(stream, block_shared_bytes, op);
  launch_rounded<256>(stream, block_shared_bytes, op);
}

}  // namespace qiao::cuda
