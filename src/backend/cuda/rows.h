// What kernels over rows share: where rows lie, and how they are dealt out to threads, four elements each.
#pragma once

#include <algorithm>

#include "backend/cuda/kernel.h"
#include "tensor/tensor.h"

namespace qiao::cuda {

// Rows of an F32 tensor [T, C] or [T, H, D].
struct Rows {
  float* data = nullptr;         // null: absent
  int64_t outer = 0, inner = 0;  // strides
  int64_t heads = 1;
  bool aligned = false;  // every row begins at a multiple of 16 bytes

  __device__ float* row(int64_t i) const {
    return heads == 1 ? data + i * outer : data + i / heads * outer + i % heads * inner;
  }
};

inline Rows rows_of(const Tensor& t) {
  if (!t.present()) return {};
  Rows rows{t.as<float>(), t.stride[0], 0, 1, false};
  if (t.rank == 3) rows.inner = t.stride[1], rows.heads = t.shape[1];
  rows.aligned = aligned_16(rows.data) && rows.outer % 4 == 0 && rows.inner % 4 == 0;
  return rows;
}

__device__ inline float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ inline float4 scale(float a, float4 b) { return make_float4(a * b.x, a * b.y, a * b.z, a * b.w); }
// a * b + c, rounded once.
__device__ inline float4 add_scaled(float a, float4 b, float4 c) {
  return make_float4(fmaf(a, b.x, c.x), fmaf(a, b.y, c.y), fmaf(a, b.z, c.z), fmaf(a, b.w, c.w));
}
__device__ inline float add_squares(float4 v, float sum) {
  return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

// A row of x + residual, or of x alone.
struct SummedRow {
  const float* x;
  const float* residual;  // null: absent
  int64_t width;
  bool x_aligned, residual_aligned;

  __device__ SummedRow(const Rows& x_rows, const Rows& residual_rows, int64_t row, int64_t row_width)
      : x(x_rows.row(row)),
        residual(residual_rows.data == nullptr ? nullptr : residual_rows.row(row)),
        width(row_width),
        x_aligned(x_rows.aligned),
        residual_aligned(residual_rows.aligned) {}
  __device__ float4 four(int64_t at) const {
    const float4 v = load_four(x, at, width, x_aligned);
    return residual == nullptr ? v : add(v, load_four(residual, at, width, residual_aligned));
  }
};

// A grid in which each thread has four elements of one row: `tiles` blocks a row.
struct Tiles {
  unsigned tiles;
  dim3 grid, block;

  Tiles(int64_t rows, int64_t width) : tiles(1), grid(1), block(1) {
    const int64_t fours = ceil_div(width, 4);
    const int64_t threads = std::clamp<int64_t>(ceil_div(fours, 32) * 32, 32, 256);
    tiles = static_cast<unsigned>(ceil_div(fours, threads));
    grid = dim3(static_cast<unsigned>(rows * tiles));
    block = dim3(static_cast<unsigned>(threads));
  }
};
struct Place {
  int64_t row, at;  // the thread's first element; at >= width: it has none
};
__device__ inline Place place_of(unsigned tiles) {
  return {int64_t{blockIdx.x / tiles}, 4 * (int64_t{blockIdx.x % tiles} * blockDim.x + threadIdx.x)};
}

// Float4s that a thread of a row keeps, and how many warps the row has: its width alone says it.
inline constexpr int kRowKept = 4, kMostRowWarps = 16;
__host__ __device__ inline int row_warps(int64_t width) {
  return width <= 512 ? 1 : width <= 2048 ? 4 : kMostRowWarps;
}
// Calls run(warps, kept) with both.
template <class Run>
void for_width(int64_t width, Run run) {
  constexpr std::integral_constant<int, kRowKept> kKept;
  switch (row_warps(width)) {
    case 1:
      return run(std::integral_constant<int, 1>(), kKept);
    case 4:
      return run(std::integral_constant<int, 4>(), kKept);
    default:
      return run(std::integral_constant<int, kMostRowWarps>(), kKept);
  }
}
// Rows of one warp come four to a block.
inline dim3 row_block(int warps) {
  return warps == 1 ? dim3(32, 4) : dim3(static_cast<unsigned>(32 * warps));
}

}  // namespace qiao::cuda
