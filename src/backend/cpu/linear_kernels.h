// What the matmuls need of an instruction set: unpacking a chunk of a weight (weight_layout.h) to the one
// form that all block formats share, and three dot-product kernels (int8, F32, BF16) over it. The tables are
// filled by linear_<isa>.cc from linear_unpack_inl.h and linear_micro_inl.h.
//
// The shared form of a chunk of a group: quants [k / 4][16 rows][4] unsigned, and for each tile of 32 its F32
// scales, so that w = scale * (quant - offset) + minimum. What every set computes, tile by tile, k ascending,
// for each (row of x, row of W) alone, is
//   one scale a tile:   sum = fma(dot, scale * x.scale, sum);  sum = fma(minimum, x.scaled_sum, sum)
//   two (16 elements):  sum = fma(dot_low, scale_low * x.scale, sum);  the same with high;
//                       sum = fma(fma(minimum_high, sum_high, minimum_low * sum_low), x.scale, sum)
// with dot = sum of (quant - offset) * x in integers; so all sets agree bit for bit.
//
// F8_128 has a form of its own: its numbers are made F32 without their scale, for a few rows of x in
// registers (linear_f8_inl.h), else to be multiplied by dot_f32, and added up for a block of 128, whose sum
// is then
//   sum = fma(block, scale * x.scale, sum)
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "backend/cpu/isa.h"
#include "backend/cpu/weight_layout.h"
#include "backend/ops/common.h"
#include "tensor/dtype.h"

namespace qiao::cpu {

// A tile of 32 activations, quantized as Compute::kQ8 says.
struct TileMeta {
  float scale;
  float scaled_sum;       // scale * sum of the quants
  int32_t minus_sum;      // of the 32 quants
  int32_t minus_sum_low;  // of the first 16
};

enum class Family : uint8_t { kOffset32, kMinimum32, kOffset16, kMinimum16 };
inline constexpr int kFamilies = 4;

// Bits of the unsigned quants: up to 4 (15), 5 (31), 6 (63) or 8.
enum class Width : uint8_t { kFour, kFive, kSix, kEight };
inline constexpr int kWidths = 4;

struct FormatForm {
  Family family;
  int offset_shift;  // offset = 1 << offset_shift in the offset families, 0 in the others
  Width width;
};
FormatForm format_form(DType dtype);  // of a block format
inline bool has_minimum(Family f) { return f == Family::kMinimum32 || f == Family::kMinimum16; }
inline int scales_per_tile(Family f) { return f == Family::kOffset16 || f == Family::kMinimum16 ? 2 : 1; }

// Two groups are computed side by side. Scales of both lie in one array, a tile after the other:
// [tile][group][low scale, (high scale), (low minimum), (high minimum)][16 rows].
inline constexpr int kPair = 2;
inline int scale_floats(Family f) { return 16 * scales_per_tile(f) * (has_minimum(f) ? 2 : 1); }

struct DotQ8 {
  std::array<const uint8_t*, kPair> quants;
  const float* scales;
  int groups;  // 1 or 2
  int offset_shift;
  int64_t tiles;
  int64_t rows;  // of x
  const int8_t* x;
  int64_t x_stride;
  const TileMeta* meta;
  int64_t meta_stride;
  float* sums;  // [rows][2][16], added to
  // What will be read next of each group, prefetched a piece with each tile so that memory never rests.
  std::array<const std::byte*, kPair> ahead;
  int64_t ahead_bytes, ahead_for_tile;
};

// A few rows of x by one group, straight from its packed chunk: decoding is reading memory, so nothing may
// stand between two reads.
struct DotPacked {
  const std::byte* chunk;
  int64_t elements;
  // LinearKernels::scales of the format: the kernel calls it when it suits its reading of memory.
  void (*unpack_scales)(const std::byte* chunk, int64_t elements, int64_t stride, float* scales);
  float* scales;  // scratch: [tile][scale_floats]
  int32_t* dots;  // scratch: [tile][scales_per_tile][rows][16], 64-byte aligned
  int offset_shift;
  int64_t rows;  // 1 to LinearKernels::packed_rows
  const int8_t* x;
  int64_t x_stride;
  const TileMeta* meta;
  int64_t meta_stride;
  float* sums;  // [rows][2][16], added to
  // What will be read next, prefetched a piece with each tile: first its scales (its end), which are needed
  // first, then its quants.
  const std::byte* ahead;
  int64_t ahead_scales, ahead_bytes;  // offset of its scales, all its bytes
  int64_t ahead_for_tile;             // bytes of it to prefetch with each tile
};

struct DotFloat {
  std::array<const void*, kPair> weights;  // F32 or F16 [k][16], or BF16 [k / 2][16][2]
  int groups;
  int64_t steps;  // k, or pairs of k
  int64_t rows;
  const void* x;     // F32, or BF16 pairs
  int64_t x_stride;  // in steps
  float* sums;
};

// sums += blocks times the scales of a block of F8_128 and of a block of each row of x.
struct AddF8Block {
  std::array<const float*, kPair> scales;  // [16] of each group
  int groups;                              // 1 or 2
  int64_t rows;
  const float* x_scales;  // of this block in the first row
  int64_t x_stride;       // to the next row's
  const float* blocks;    // [rows][2][16]
  float* sums;            // the same
};

// A few rows of x by a chunk of F8_128, whose codes are made numbers in registers: as with DotPacked nothing
// stands between two reads of memory.
struct DotF8 {
  std::array<const std::byte*, kPair> chunks;
  int groups;        // 1 or 2
  int64_t elements;  // a multiple of kF8Block
  int64_t rows;
  const float* x;  // numbers, or what is multiplied with values
  int64_t x_stride;
  const float* x_scales;                      // of the numbers: a row's of the chunk's blocks
  int64_t x_scales_stride;                    // to the next row's
  float* sums;                                // [rows][2][16], added to
  std::array<const std::byte*, kPair> ahead;  // what will be read next of each group, prefetched
};

struct LinearKernels {
  Isa isa;
  // One row; columns a multiple of 32.
  void (*quantize)(const float* x, int64_t columns, int8_t* quants, TileMeta* meta);
  // Rounds to BF16, kept as F32 (x_f32) or as pairs (x_pairs; an odd last element is paired with 0).
  void (*round_bf16)(const float* x, int64_t columns, float* rounded);
  void (*pack_bf16)(const float* x, int64_t columns, uint16_t* pairs);  // null without dot_bf16
  // elements: a multiple of 32 (of the format's block). Null where the chunk already is in the shared form.
  std::array<void (*)(const std::byte* chunk, int64_t elements, uint8_t* quants), kDTypeCount> quants;
  // stride: floats from a tile to the next.
  std::array<void (*)(const std::byte* chunk, int64_t elements, int64_t stride, float* scales), kDTypeCount>
      scales;
  // The shared form to F32 [k][16]: exactly the format's dequantization.
  std::array<void (*)(const uint8_t* quants, const float* scales, int64_t stride, int64_t tiles, int offset,
                      float* out),
             kFamilies>
      dequantize;
  // One row as Compute::kF8 says, the numbers kept as F32; columns a multiple of kF8Block, a scale each.
  void (*quantize_f8)(const float* x, int64_t columns, float* numbers, float* scales);
  // Codes of F8_128 to F32 [k][16]: numbers, or with the scales of their blocks ([block][16]) values.
  void (*f8_to_f32)(const std::byte* codes, const float* scales, int64_t elements, float* out);
  void (*add_f8_block)(const AddF8Block&);
  void (*dot_f8)(const DotF8&);         // kF8's numbers and their scales
  void (*dot_f8_values)(const DotF8&);  // values and F32 activations
  int64_t f8_rows, f8_value_rows;       // up to so many rows they are the faster way; 0 where there are none
  // F16 and BF16 chunks to F32 [k][16].
  void (*f16_to_f32)(const std::byte* chunk, int64_t elements, float* out);
  void (*bf16_to_f32)(const std::byte* chunk, int64_t elements, float* out);
  std::array<std::array<void (*)(const DotQ8&), kWidths>, kFamilies> dot_q8;  // those that formats have
  std::array<void (*)(const DotPacked&), kDTypeCount> dot_packed;
  std::array<int64_t, kDTypeCount> packed_rows;  // up to so many rows dot_packed is the faster way
  void (*dot_f32)(const DotFloat&);
  void (*dot_f16)(const DotFloat&);       // F16 weights, F32 activations
  void (*dot_bf16_f32)(const DotFloat&);  // BF16 weights, F32 activations; steps are pairs
  void (*dot_bf16)(const DotFloat&);      // BF16 weights and activations; null without such instructions
};

const LinearKernels& linear_kernels_generic();
const LinearKernels& linear_kernels_avx2();
const LinearKernels& linear_kernels_avx512();
const LinearKernels& linear_kernels_avx512_vnni();
const LinearKernels& linear_kernels_avx512_bf16();

// The table of a set this machine has (Isa up to widest_isa()).
const LinearKernels& linear_kernels(Isa isa);

}  // namespace qiao::cpu
