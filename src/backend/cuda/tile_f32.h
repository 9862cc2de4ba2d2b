// Products in F32: C[i, j] = sum over r of A[r, i] * B[r, j], for 128 i by kColumns j of a block, r
// ascending, one fmaf each. Plan: 256 threads; stages of 32 r, of which A and B lie in shared memory as
// [r][i] and [r][j], two in turn: while one is multiplied the next is on its way to registers. With 64
// columns a thread keeps 8 x 4 sums: 3 loads of 16 bytes for 32 multiply-adds. Limit: F32 arithmetic; the
// loads of shared memory take a tenth of it. Measured: docs/h200.md.
#pragma once

#include "backend/cuda/weight_rows.h"

namespace qiao::cuda {

inline constexpr int kTileDepth = 32, kTileWidth = 128, kTileThreads = 256;
inline constexpr int kWidthStride = kTileWidth + 4;  // of A's rows: 16-byte aligned, other banks

template <int kColumns>
struct TileSums {
  static_assert(kColumns == 64 || kColumns == 8);
  static constexpr int kVectors = kColumns == 64 ? 2 : 1;  // of 4 i
  static constexpr int kOwn = kColumns == 64 ? 4 : 1;      // j
  static constexpr int kCount = 4 * kVectors * kOwn;
  static constexpr int kAcross = kTileWidth / (4 * kVectors);  // threads along i
  static constexpr int kColumnStride = kColumns + 4;
  static constexpr int kStageFloats = kTileDepth * (kWidthStride + kColumnStride);
  static constexpr size_t kSharedBytes = 2 * kStageFloats * sizeof(float);

  // Sum n of this thread is of i = i_of(n), j = j_of(n) in the block.
  __device__ static int i_of(int n) {
    return n / kOwn / 4 * (4 * kAcross) + static_cast<int>(threadIdx.x) % kAcross * 4 + n / kOwn % 4;
  }
  __device__ static int j_of(int n) { return static_cast<int>(threadIdx.x) / kAcross * kOwn + n % kOwn; }
};

// a and b: load(r) brings the stage from r on to registers, store(shared) puts it there, zeros where there is
// nothing. Threads that are not `active` have no sums that count.
template <int kColumns, class A, class B>
__device__ inline void multiply_stages(int64_t begin, int64_t end, A& a, B& b, bool active, float* shared,
                                       float (&sums)[TileSums<kColumns>::kCount]) {
  using T = TileSums<kColumns>;
  const int i0 = T::i_of(0), j0 = T::j_of(0);
  int which = 0;
  if (begin < end) a.load(begin), b.load(begin);
  for (int64_t r = begin; r < end; r += kTileDepth, which ^= 1) {
    float* wide = shared + which * T::kStageFloats;
    float* narrow = wide + kTileDepth * kWidthStride;
    a.store(wide);
    b.store(narrow);
    __syncthreads();
    if (r + kTileDepth < end) a.load(r + kTileDepth), b.load(r + kTileDepth);
    if (!active) continue;
#pragma unroll 4
    for (int k = 0; k < kTileDepth; ++k) {
      float x[4 * T::kVectors], y[T::kOwn];
#pragma unroll
      for (int v = 0; v < T::kVectors; ++v) {
        const float4 four =
            *reinterpret_cast<const float4*>(wide + k * kWidthStride + i0 + v * (4 * T::kAcross));
        x[4 * v] = four.x, x[4 * v + 1] = four.y, x[4 * v + 2] = four.z, x[4 * v + 3] = four.w;
      }
      if constexpr (T::kOwn == 4) {
        const float4 four = *reinterpret_cast<const float4*>(narrow + k * T::kColumnStride + j0);
        y[0] = four.x, y[1] = four.y, y[2] = four.z, y[3] = four.w;
      } else {
        y[0] = narrow[k * T::kColumnStride + j0];
      }
#pragma unroll
      for (int n = 0; n < T::kCount; ++n) sums[n] = fmaf(x[n / T::kOwn], y[n % T::kOwn], sums[n]);
    }
  }
  __syncthreads();  // the stages are free
}

// 32 r of up to kCount rows of a row-major matrix, r along its rows: element [r][j] is row `first + j` at
// column `column + r`, zero from r = `width` on.
template <int kCount, int kStride>
struct AlongRows {
  static constexpr int kEach = kCount * kTileDepth / kTileThreads;
  const float* rows;  // of the first
  int64_t stride, column, width;
  int count;
  float value[kEach];

  __device__ void load(int64_t r) {
    const int64_t at = r + threadIdx.x % 32;
    const int from = static_cast<int>(threadIdx.x / 32);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int j = from + 8 * i;
      value[i] = j < count && at < width ? rows[j * stride + column + at] : 0.0f;
    }
  }
  __device__ void store(float* shared) const {
    const int from = static_cast<int>(threadIdx.x / 32);
#pragma unroll
    for (int i = 0; i < kEach; ++i) shared[threadIdx.x % 32 * kStride + from + 8 * i] = value[i];
  }
};

// The same where r counts rows: element [r][j] is row r at column first + j.
template <int kCount, int kStride>
struct AcrossRows {
  static constexpr int kEach = kCount * kTileDepth / kTileThreads;
  const float* rows;
  int64_t stride, end;  // rows from `end` on are not there
  int64_t first, width;
  float value[kEach];

  static constexpr int kStep = kTileThreads / kCount;  // rows from one of a thread's values to the next

  __device__ void load(int64_t r) {
    const int64_t row = r + threadIdx.x / kCount, at = first + threadIdx.x % kCount;
    const float* from = rows + row * stride + at;
    const int left = at >= width ? 0 : static_cast<int>(end - row < kTileDepth ? end - row : kTileDepth);
#pragma unroll
    for (int i = 0; i < kEach; ++i, from += kStep * stride) value[i] = kStep * i < left ? *from : 0.0f;
  }
  __device__ void store(float* shared) const {
    float* to = shared + threadIdx.x / kCount * kStride + threadIdx.x % kCount;
#pragma unroll
    for (int i = 0; i < kEach; ++i) to[kStep * i * kStride] = value[i];
  }
};

// What a lane 4 g + j has of 16 rows by 32 columns of a weight. kKind: kF32, kF16, kBF16, or kQ4_0 for all
// block formats, which are told apart as they are read.
template <DType kKind>
struct WeightPiece {
  static constexpr bool kBlocks = kKind == DType::kQ4_0;
  static constexpr int kUnits = kKind == DType::kF32 ? 4 : 2;
  float value[kBlocks ? 16 : 1];
  uint4 raw[kBlocks ? 1 : kUnits];

  // Of the 16 rows `row_tile`, columns from k on, a multiple of 32; zeros where there are none.
  __device__ void load(const WeightRows& w, int64_t row_tile, int64_t k, int lane) {
    const bool there = row_tile * kTileRows < w.rows && k < w.columns;
    if constexpr (kBlocks) {
#pragma unroll
      for (int i = 0; i < 16; ++i) value[i] = 0;
      if (!there) return;
      for_block_format(w.dtype, [&](auto type) {
        using F = Format<type()>;
        const uint8_t* tile = w.tiles + (row_tile * w.units + k / F::kElements) * F::kTileBytes;
        unpack_lane<type()>(tile, lane, static_cast<int>(k % F::kElements / 32), value);
      });
    } else {
      constexpr int kElements = tile_layout(kKind).elements;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int64_t unit = k / kElements + u;
        raw[u] = there && unit < w.units ? tile::four(w.tiles + (row_tile * w.units + unit) * 512 + lane * 16)
                                         : make_uint4(0, 0, 0, 0);
      }
    }
  }

  // give(half, column, value) for its 16 elements: row g + 8 * half, column 0 to 31.
  template <class Give>
  __device__ void each(int lane, Give give) const {
    const int j = lane % 4;
    if constexpr (kBlocks) {
#pragma unroll
      for (int i = 0; i < 16; ++i) give(i / 4 % 2, i / 8 * 16 + 4 * j + i % 4, value[i]);
    } else {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint32_t words[4] = {raw[u].x, raw[u].y, raw[u].z, raw[u].w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (kKind == DType::kF32) {
            give(i % 2, u * 8 + i / 2 * 4 + j, __uint_as_float(words[i]));
          } else {
            const float2 two = unpack_two<kKind>(words[i]);
            give(i % 2, u * 16 + i / 2 * 8 + 2 * j, two.x);
            give(i % 2, u * 16 + i / 2 * 8 + 2 * j + 1, two.y);
          }
        }
      }
    }
  }
};

// A of a product along K: [k][row] of 128 rows of a weight.
template <DType kKind>
struct WeightAlongK {
  WeightRows weight;
  int64_t row_tile;  // the block's first
  WeightPiece<kKind> piece;

  __device__ void load(int64_t k) { piece.load(weight, row_tile + threadIdx.x / 32, k, threadIdx.x % 32); }
  __device__ void store(float* shared) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int row = static_cast<int>(threadIdx.x / 32) * kTileRows + lane / 4;
    piece.each(lane, [&](int half, int k, float v) { shared[k * kWidthStride + row + 8 * half] = v; });
  }
};

// A of a product along N: [row][k] of 128 columns from `column` on.
template <DType kKind>
struct WeightAlongN {
  WeightRows weight;
  int64_t column;
  WeightPiece<kKind> piece;

  __device__ void load(int64_t row) {
    piece.load(weight, row / kTileRows + threadIdx.x / 128, column + threadIdx.x / 32 % 4 * 32,
               threadIdx.x % 32);
  }
  __device__ void store(float* shared) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int row = static_cast<int>(threadIdx.x / 128) * kTileRows + lane / 4;
    float* to = shared + row * kWidthStride + threadIdx.x / 32 % 4 * 32;
    piece.each(lane, [&](int half, int k, float v) { to[8 * half * kWidthStride + k] = v; });
  }
};

// Calls run(std::integral_constant<DType, kKind>()) with the WeightPiece of a dtype.
template <class Run>
void for_piece_kind(DType dtype, Run run) {
  switch (dtype) {
    case DType::kF32:
      return run(std::integral_constant<DType, DType::kF32>());
    case DType::kF16:
      return run(std::integral_constant<DType, DType::kF16>());
    case DType::kBF16:
      return run(std::integral_constant<DType, DType::kBF16>());
    default:
      return run(std::integral_constant<DType, DType::kQ4_0>());
  }
}

}  // namespace qiao::cuda
