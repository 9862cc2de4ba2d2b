// Where the tensor cores' products of many tokens look for x, and rows that are normed on their way there. A
// warp has 128 columns of a row, a lane four of them. prepare_normed reads a row once into the registers of
// its threads (norm_rows.h) and writes the operand alone: of 2048 tokens of 4096 in BF16 33 MB are read and
// 17 written, where a norm of its own writes 33 more, which then are read again, and is a launch more: 117 MB
// in place of 50, some 17 us of an H200's bandwidth. Not yet run on a device.
#pragma once

#include "backend/cuda/activation_rows.h"

namespace qiao::cuda {

// Rows one behind the other, `columns` each; of quants and numbers of E4M3 the meta apart.
template <Compute kCompute>
struct RowOperand {
  uint8_t* out;
  ActivationMeta* meta;
  int64_t columns;

  // Four elements of a row from column k on; by whole warps, of which lanes may be outside.
  __device__ void put(const float (&four)[4], int64_t row, int64_t k, bool inside) const {
    if constexpr (kCompute == Compute::kF8) {
      float scale;
      const uint32_t numbers = quantize_four_f8(four, scale);
      if (!inside) return;
      *reinterpret_cast<uint32_t*>(out + row * columns + k) = numbers;
      if (threadIdx.x % 32 == 0) meta[row * (columns / kF8Block) + k / kF8Block] = {scale, 0};
    } else if constexpr (kCompute == Compute::kQ8) {
      ActivationMeta of_block;
      const uint32_t quants = quantize_four(four, of_block);
      if (!inside) return;
      *reinterpret_cast<uint32_t*>(out + row * columns + k) = quants;
      if (threadIdx.x % 8 == 0) meta[row * (columns / kQ8Block) + k / kQ8Block] = of_block;
    } else if (inside) {
      *reinterpret_cast<uint2*>(out + (row * columns + k) * 2) =
          make_uint2(two_bf16(four[0], four[1]), two_bf16(four[2], four[3]));
    }
  }
};

// For wgmma in BF16: [stage of 64 columns][row of `rows`, a multiple of 8][128 bytes], each row's 16-byte
// pieces where wgmma looks for them (instructions.h).
struct PieceOperand {
  uint8_t* out;
  int64_t rows;

  // Of eight elements.
  __device__ uint8_t* piece(int64_t row, int64_t k) const {
    return out + (k / 64 * rows + row) * 128 + (k % 64 / 8 ^ row % 8) * 16;
  }
  __device__ void put(const float (&four)[4], int64_t row, int64_t k, bool inside) const {
    if (!inside) return;
    *reinterpret_cast<uint2*>(piece(row, k) + k % 8 * 2) =
        make_uint2(two_bf16(four[0], four[1]), two_bf16(four[2], four[3]));
  }
};

// The same of E4M3: [block of 128 columns][row][128 numbers], then the scales, [block][row].
struct F8PieceOperand {
  uint8_t* out;
  float* scales;
  int64_t rows;

  __device__ void put(const float (&four)[4], int64_t row, int64_t k, bool inside) const {
    float scale;
    const uint32_t numbers = quantize_four_f8(four, scale);
    if (!inside) return;
    const int64_t place = k / kF8Block * rows + row;
    uint8_t* to = out + place * kF8Block + (k % kF8Block / 16 ^ row % 8) * 16 + k % 16;
    *reinterpret_cast<uint32_t*>(to) = numbers;
    if (threadIdx.x % 32 == 0) scales[place] = scale;
  }
};

// Rows up to `rows`: from `tokens` on, and from `width` on in each, zeros. `columns`: all, in steps of 64 at
// least.
template <class Operand, int kWarps>
__global__ void __launch_bounds__(kWarps == 1 ? 128 : 32 * kWarps, kWarps == 16 ? 2 : 1)
    prepare_normed(const float* x, int64_t stride, int64_t tokens, int64_t rows, int64_t width,
                   int64_t columns, RowNorm norm, Operand operand) {
  begin_kernel();
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;  // of a warp for itself: no barrier follows
  constexpr int64_t kStep = 4 * 32 * kWarps;
  const int64_t first = 4 * int64_t{threadIdx.x};
  const bool aligned = aligned_16(x) && stride % 4 == 0;
  float4 kept[kRowKept] = {}, gains[kRowKept];
  if (row < tokens) {
#pragma unroll
    for (int j = 0; j < kRowKept; ++j)
      kept[j] = load_four(x + row * stride, first + j * kStep, width, aligned);
  }
#pragma unroll
  for (int j = 0; j < kRowKept; ++j)
    gains[j] = gain(norm.gamma, norm.gamma_aligned, norm.gamma_offset, first + j * kStep, width);
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kRowKept; ++j) squares = add_squares(kept[j], squares);
  QIAO_SHARED(float, of_warp, 32);
  const float factor = norm_factor(block_sum<kWarps>(squares, of_warp), width, norm.epsilon);
#pragma unroll
  for (int j = 0; j < kRowKept; ++j) {
    const int64_t k = first + j * kStep;
    if (k - 4 * int64_t{threadIdx.x % 32} >= columns) break;  // of a whole warp
    const float4 y = normed(kept[j], factor, gains[j]);
    const float four[4] = {y.x, y.y, y.z, y.w};
    operand.put(four, row, k, k < columns);
  }
}

template <class Operand>
void launch_prepare_normed(const Stream& stream, const MatmulArguments& op, int64_t rows,
                           const Operand& operand) {
  for_width(op.weight.columns, [&](auto warps, auto) {
    const dim3 block = row_block(warps);
    launch("linear", stream, prepare_normed<Operand, warps()>, blocks_for(rows, block.y), block, 0, op.x,
           op.x_stride, op.tokens, rows, op.weight.columns, op.prepared_columns, op.norm, operand);
  });
}

}  // namespace qiao::cuda
