// Bags of rows: what embedding_bag and its way back share, whose sums are bags of rows of dout.
#pragma once

#include "backend/cuda/rows.h"
#include "backend/cuda/weight_rows.h"

namespace qiao::cuda {

inline constexpr int kBagThreads = 256;
inline constexpr int kStretch = 1024;  // sorted places of a block, and of a part of a row's sum

// Rows of F32, F16 or BF16.
struct BagTable {
  const void* data;
  int64_t stride, rows, columns;
  bool aligned;  // four elements from a multiple of 4 on are one load
};

inline BagTable bag_table(const Tensor& rows) {
  const int64_t four = 4 * traits(rows.dtype).block_bytes;
  return {
      rows.data, rows.stride[0], rows.shape[0], rows.shape[1],
      reinterpret_cast<uintptr_t>(rows.data) % static_cast<uintptr_t>(four) == 0 && rows.stride[0] % 4 == 0};
}

// Elements at to at + 3 of a row; zeros beyond its end.
template <DType kType>
__device__ inline float4 table_four(const BagTable& table, int64_t row, int64_t at) {
  if constexpr (kType == DType::kF32) {
    return load_four(static_cast<const float*>(table.data) + row * table.stride, at, table.columns,
                     table.aligned);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(table.data) + row * table.stride + at;
    uint2 words;
    if (table.aligned && at + 4 <= table.columns) {
      words = *reinterpret_cast<const uint2*>(from);
    } else {
      const auto bits = [&](int i) { return at + i < table.columns ? uint32_t{from[i]} : 0u; };
      words = make_uint2(bits(0) | bits(1) << 16, bits(2) | bits(3) << 16);
    }
    const float2 a = unpack_two<kType>(words.x), b = unpack_two<kType>(words.y);
    return make_float4(a.x, a.y, b.x, b.y);
  }
}

struct Bags {
  BagTable table;
  const int32_t *ids, *offsets;
  const float* weights;  // null: 1 each
  int64_t places, bags;
  const int32_t* bag_count;  // of those, on the device; null: all
  Rows out;
  const int32_t* out_rows;  // of a bag; null: its own number
  bool mean, add;
  int lanes;  // threads of a bag, a power of two
  unsigned tiles;
  // On the way back: for each stretch of the sorted places how many rows begin before it, and its part of the
  // sum of a row that began before.
  const int32_t* stretch_runs;
  float* stretch_sums;  // [stretches, stretch_width]
  int64_t stretches, stretch_width;
};

// A bag's places, whatever its offsets are.
struct BagPlaces {
  int64_t begin, end;
};
__device__ inline BagPlaces bag_places(const int32_t* offsets, int64_t bag, int64_t places) {
  const auto inside = [&](int64_t least, int64_t offset) {
    return offset < least ? least : offset < places ? offset : places;
  };
  const int64_t begin = inside(0, offsets[bag]);
  return {begin, inside(begin, offsets[bag + 1])};
}

// out[b, :] for each bag, of rows of the dtype; parts of sums in other stretches come after.
void launch_bags(const char* name, const Stream& stream, DType dtype, Bags op);

}  // namespace qiao::cuda
