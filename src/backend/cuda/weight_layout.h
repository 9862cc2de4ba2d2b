// How a weight lies in the device's memory. Rows come 16 at a time, and of those a unit of K at a time: a
// tile, which holds 16 blocks of the file (16 x 256, 128 or 32 elements; of plain dtypes 16 x 16 or 16 x 8,
// padded with zeros at the end of a row). In a tile the blocks' fields lie apart:
// - quants as mma.m16n8k32 takes its A (mma.m16n8k16 for 16-bit elements): for each run of 32 bytes of the
// file
//   lane 4 g + j has its words j and 4 + j of row g and row g + 8 in one 16-byte piece, so that a warp's load
//   is 512 bytes without a gap and is the operand, from device memory and from shared memory alike. Where the
//   32 elements of a group are 16 bytes of nibbles, a lane's piece is word j of both rows: 8 bytes.
// - scales, high bits of few bytes and such row by row.
// A bijection of the file's bytes; tiles are multiples of 16 bytes. The tiles of 16 rows follow each other
// along K, so what a warp reads is one run of memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

#ifdef __CUDACC__
#define QIAO_HOST_DEVICE __host__ __device__
#else
#define QIAO_HOST_DEVICE
#endif

namespace qiao::cuda {

inline constexpr int kTileRows = 16;

struct TileField {
  enum class Order : uint8_t { kRows, kWords16, kWords32 };
  int from, bytes;  // in the file's block
  Order order;
};

// A dtype's tile.
struct TileLayout {
  int elements = 0;     // of K
  int block_bytes = 0;  // of a row's part
  int field_count = 0;
  TileField fields[4] = {};

  QIAO_HOST_DEVICE constexpr int bytes() const { return kTileRows * block_bytes; }

  // Where byte `byte` of the block of row `row` (0 to 15) lies in the tile.
  QIAO_HOST_DEVICE constexpr int position(int row, int byte) const {
    int base = 0;
    for (int f = 0; f < field_count; ++f) {
      const int i = byte - fields[f].from, run = fields[f].bytes;
      if (i >= 0 && i < run) {
        const int lane = row % 8 * 4 + i % 16 / 4, half = row / 8 * 4 + i % 4;
        if (fields[f].order == TileField::Order::kRows) return base + row * run + i;
        if (fields[f].order == TileField::Order::kWords16) return base + i / 16 * 256 + lane * 8 + half;
        return base + i / 32 * 512 + lane * 16 + i % 32 / 16 * 8 + half;
      }
      base += kTileRows * run;
    }
    return -1;
  }
};

constexpr TileLayout tile_layout(DType dtype) {
  constexpr auto kRows = TileField::Order::kRows;
  constexpr auto kWords16 = TileField::Order::kWords16;
  constexpr auto kWords32 = TileField::Order::kWords32;
  switch (dtype) {
    case DType::kF32:
      return {8, 32, 1, {{0, 32, kWords32}}};
    case DType::kF16:
    case DType::kBF16:
      return {16, 32, 1, {{0, 32, kWords32}}};
    case DType::kQ4_0:
    case DType::kIQ4_NL:
      return {32, 18, 2, {{2, 16, kWords16}, {0, 2, kRows}}};
    case DType::kQ4_1:
      return {32, 20, 2, {{4, 16, kWords16}, {0, 4, kRows}}};
    case DType::kQ5_0:
      return {32, 22, 3, {{6, 16, kWords16}, {2, 4, kRows}, {0, 2, kRows}}};
    case DType::kQ5_1:
      return {32, 24, 3, {{8, 16, kWords16}, {4, 4, kRows}, {0, 4, kRows}}};
    case DType::kQ8_0:
      return {32, 34, 2, {{2, 32, kWords32}, {0, 2, kRows}}};
    case DType::kMXFP4:
      return {32, 17, 2, {{1, 16, kWords16}, {0, 1, kRows}}};
    case DType::kQ2_K:
      return {256, 84, 3, {{16, 64, kWords32}, {0, 16, kRows}, {80, 4, kRows}}};
    case DType::kQ3_K:
      return {256, 110, 4, {{32, 64, kWords32}, {0, 32, kWords32}, {96, 12, kRows}, {108, 2, kRows}}};
    case DType::kQ4_K:
      return {256, 144, 2, {{16, 128, kWords32}, {0, 16, kRows}}};
    case DType::kQ5_K:
      return {256, 176, 3, {{48, 128, kWords32}, {16, 32, kWords32}, {0, 16, kRows}}};
    case DType::kQ6_K:
      return {256, 210, 4, {{0, 128, kWords32}, {128, 64, kWords32}, {192, 16, kRows}, {208, 2, kRows}}};
    case DType::kF8_128:
      return {128, 132, 2, {{0, 128, kWords32}, {128, 4, kRows}}};
    case DType::kIQ4_XS:
      return {256, 136, 2, {{8, 128, kWords16}, {0, 8, kRows}}};
    default:
      return {};
  }
}

// Of a tile of F8_128: which word has numbers 4 * four to 4 * four + 3 of a row, and where its scales begin.
QIAO_HOST_DEVICE constexpr int f8_word(int row, int four) {
  return four / 8 * 128 + (row % 8 * 4 + four % 4) * 4 + four % 8 / 4 * 2 + row / 8;
}
inline constexpr int kF8ScalesAt = kTileRows * static_cast<int>(kF8Block);

// Rows of one dtype, of one expert: what kernels are given.
struct WeightRows {
  const uint8_t* tiles = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, columns = 0;
  int64_t units = 0;  // tiles along K
};

}  // namespace qiao::cuda
