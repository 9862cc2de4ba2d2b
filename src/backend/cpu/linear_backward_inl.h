// Plan: a tile of kTileRows × kTileVectors registers holds sums; a step loads a row of a panel once and
// broadcasts one number a row of the tile. A lane is a column of the result and walks the sum in order,
// whatever the tile's shape. The multiply-adds are the limit: 24 a step on AVX-512, for 10 loads.
#pragma once

#include <cstring>

#include "backend/cpu/e4m3_inl.h"
#include "backend/cpu/element.h"
#include "backend/cpu/linear_backward_kernels.h"
#include "backend/cpu/unroll.h"

namespace qiao::cpu {

template <class V>
struct LinearBackwardKernel {
  using F = typename V::F;
  static constexpr int kRows = V::kTileRows, kVectors = V::kTileVectors;
  static constexpr int64_t kPanel = 16 * kVectors;

  static void multiply(const TileProduct& product) {
    if (product.columns == kPanel) return some_rows<kRows>(product);
    // Through a tile of its own: beyond `columns` c is not there.
    float whole[kRows * kPanel] = {};
    TileProduct p = product;
    p.c = whole;
    p.c_stride = kPanel;
    const auto bytes = static_cast<size_t>(p.columns) * sizeof(float);
    for (int64_t i = 0; p.add && i < p.rows; ++i) {
      std::memcpy(whole + i * kPanel, product.c + i * product.c_stride, bytes);
    }
    some_rows<kRows>(p);
    for (int64_t i = 0; i < p.rows; ++i) {
      std::memcpy(product.c + i * product.c_stride, whole + i * kPanel, bytes);
    }
  }

  static void pack_group(const float* from, int64_t elements, int64_t column, int64_t rows, int64_t depth,
                         float* packed) {
    for (int64_t e = 0; e < elements; e += 16) {
      const int64_t count = elements - e < 16 ? elements - e : 16, at = column + e;
      F x[16];
      for (int i = 0; i < 16; ++i) x[i] = i < count ? V::load(from + (e + i) * 16) : V::set(0.0f);
      V::transpose(x);
      float* to = packed + at / kPanel * depth * kPanel + at % kPanel;
      for (int64_t r = 0; r < rows; ++r) V::store(to + r * kPanel, x[r]);
    }
  }

  static void pack_row(const float* from, int64_t columns, int64_t depth, float* packed) {
    int64_t k = 0;
    for (; k + kPanel <= columns; k += kPanel) {
      float* to = packed + k * depth;
      unroll<kVectors>([&](auto n) { V::store(to + n * 16, V::load(from + k + n * 16)); });
    }
    for (float* to = packed + k * depth; k < columns; ++k) *to++ = from[k];
  }

  static void pack_tiles(const float* from, int64_t stride, int64_t depth, int64_t rows, float* tiles) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      float* to = tiles + r * depth;
      for (int64_t s = 0; s < depth; ++s, to += kRows) {
        const float* at = from + s * stride + r;
        unroll<kRows>([&](auto i) { to[i] = at[i]; });
      }
    }
    for (int64_t s = 0; r < rows && s < depth; ++s) {
      for (int64_t i = r; i < rows; ++i) tiles[r * depth + s * kRows + i - r] = from[s * stride + i];
    }
  }

  static void round_row(const float* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) V::store(to + i, V::brain(V::load(from + i)));
    if (i < count) V::store_part(to + i, V::brain(V::load_part(from + i, count - i)), count - i);
  }

  static void round_rows(const float* from, int64_t stride, int64_t depth, int64_t width, float* to) {
    if (stride == width) return round_row(from, depth * width, to);
    for (int64_t s = 0; s < depth; ++s) round_row(from + s * stride, width, to + s * width);
  }

  static void pair_row(const float* from, int64_t count, float* to) {
    auto* halves = reinterpret_cast<Brain*>(to);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) V::store(halves + i, V::load(from + i));
    if (i == count) return;
    Brain last[16];
    V::store(last, V::load_part(from + i, count - i));
    std::memcpy(halves + i, last, static_cast<size_t>((count - i + 1) / 2) * sizeof(float));
  }

  static void pair_rows(const float* from, int64_t stride, int64_t depth, int64_t width, float* to) {
    for (int64_t s = 0; s < depth; s += 2, from += 2 * stride, to += width) {
      for (int64_t j = 0; j < width; j += 16) {
        const int64_t count = width - j < 16 ? width - j : 16;
        const F low = V::load_part(from + j, count);
        const F high = s + 1 < depth ? V::load_part(from + stride + j, count) : V::set(0.0f);
        Brain halves[2][16];
        V::store(halves[0], low);
        V::store(halves[1], high);
        uint32_t pairs[16];
        for (int i = 0; i < 16; ++i) pairs[i] = halves[0][i].bits | uint32_t{halves[1][i].bits} << 16;
        std::memcpy(to + j, pairs, static_cast<size_t>(count) * sizeof(float));
      }
    }
  }

  static void round_row_f8(const float* from, int64_t count, float* to) {
    for (int64_t k = 0; k < count; k += kF8Block, from += kF8Block, to += kF8Block) {
      const int64_t own = count - k < kF8Block ? count - k : kF8Block;
      int32_t most = 0;
      for (int64_t i = 0; i < own; ++i) {
        const int32_t magnitude = magnitude_bits(from[i]);
        most = magnitude > most ? magnitude : most;
      }
      const BlockScale block = e4m3_scale(most);
      for (int64_t i = 0; i < own; ++i) to[i] = block.scale * nearest_e4m3(from[i] * block.inverse);
    }
  }

  static void round_rows_f8(const float* from, int64_t stride, int64_t depth, int64_t width, float* to) {
    for (int64_t s = 0; s < depth; s += kF8Block, from += kF8Block * stride, to += kF8Block * width) {
      const int64_t own = depth - s < kF8Block ? depth - s : kF8Block;
      int64_t j = 0;
      for (; j + 16 <= width; j += 16) columns_f8<16>(from + j, stride, own, width, to + j);
      for (; j < width; ++j) columns_f8<1>(from + j, stride, own, width, to + j);
    }
  }

 private:
  // One block of kColumns columns.
  template <int kColumns>
  static void columns_f8(const float* from, int64_t stride, int64_t depth, int64_t width, float* to) {
    int32_t most[kColumns] = {};
    for (int64_t s = 0; s < depth; ++s) {
      for (int c = 0; c < kColumns; ++c) {
        const int32_t magnitude = magnitude_bits(from[s * stride + c]);
        most[c] = magnitude > most[c] ? magnitude : most[c];
      }
    }
    BlockScale block[kColumns];
    for (int c = 0; c < kColumns; ++c) block[c] = e4m3_scale(most[c]);
    float scale[kColumns], inverse[kColumns];
    for (int c = 0; c < kColumns; ++c) scale[c] = block[c].scale, inverse[c] = block[c].inverse;
    for (int64_t s = 0; s < depth; ++s) {
      float made[kColumns];
      for (int c = 0; c < kColumns; ++c) made[c] = scale[c] * nearest_e4m3(from[s * stride + c] * inverse[c]);
      std::memcpy(to + s * width, made, sizeof made);
    }
  }

  template <int R>
  static void some_rows(const TileProduct& p) {
    if constexpr (R > 1) {
      if (p.rows < R) return some_rows<R - 1>(p);
    }
    tile<R>(p);
  }

  template <int R>
  static void tile(const TileProduct& p) {
    const float* a[R];
    float* const c = p.c;
    const int64_t c_stride = p.c_stride;
    F sums[R][kVectors];
    unroll<R>([&](auto i) {
      a[i] = p.a + i * p.a_row;
      unroll<kVectors>(
          [&](auto n) { sums[i][n] = p.add ? V::load(c + i * c_stride + n * 16) : V::set(0.0f); });
    });
    const float* row = p.b;
    const int64_t step = p.a_step;
    for (int64_t s = 0, at = 0; s < p.steps; ++s, at += step, row += kPanel) {
      F b[kVectors];
      unroll<kVectors>([&](auto n) { b[n] = V::load(row + n * 16); });
      unroll<R>([&](auto i) {
        const F x = V::set(a[i][at]);
        unroll<kVectors>([&](auto n) { sums[i][n] = V::fma(x, b[n], sums[i][n]); });
      });
    }
    unroll<R>(
        [&](auto i) { unroll<kVectors>([&](auto n) { V::store(c + i * c_stride + n * 16, sums[i][n]); }); });
  }
};

template <class V>
constexpr LinearBackwardKernels linear_backward_kernels() {
  using Kernel = LinearBackwardKernel<V>;
  return {V::kTileRows,
          Kernel::kPanel,
          Kernel::multiply,
          Kernel::pack_group,
          Kernel::pack_row,
          Kernel::pack_tiles,
          1,
          Kernel::round_row,
          Kernel::round_rows,
          Kernel::multiply,
          Kernel::round_row_f8,
          Kernel::round_rows_f8};
}

// The same, with P::fma as the product of two pairs: P is V in all else.
template <class V, class P>
constexpr LinearBackwardKernels pair_kernels() {
  LinearBackwardKernels kernels = linear_backward_kernels<V>();
  kernels.bf16_steps = 2;
  kernels.round_row = LinearBackwardKernel<V>::pair_row;
  kernels.round_rows = LinearBackwardKernel<V>::pair_rows;
  kernels.multiply_bf16 = LinearBackwardKernel<P>::multiply;
  return kernels;
}

}  // namespace qiao::cpu
