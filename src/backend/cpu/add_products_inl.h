// Plan: tiles of kTileRows rows × kTileVectors vectors of columns, a lane a column, whose sums stay in
// registers while all terms pass: a vector of y is loaded once for all rows, each weight broadcast once for
// all vectors. Multiply-adds are the limit while y's columns of a tile lie in the L1 cache.
#pragma once

#include "backend/cpu/add_products_kernels.h"
#include "backend/cpu/attention_inl.h"

namespace qiao::cpu {

template <class V>
struct AddProductsKernel {
  using F = typename V::F;

  static void add(const AddProducts& a) { columns<V::kTileVectors>(a, 0); }

 private:
  // Columns from `c` on: tiles of N vectors, then narrower ones, then what fills no vector.
  template <int N>
  static void columns(const AddProducts& a, int64_t c) {
    for (; c + 16 * N <= a.columns; c += 16 * N) rows<N, V::kTileRows, false>(a, 0, c);
    if (c >= a.columns) return;
    if constexpr (N > 1) {
      columns<N / 2>(a, c);
    } else {
      rows<1, V::kTileRows, true>(a, 0, c);
    }
  }

  template <int N, int R, bool kPart>
  static void rows(const AddProducts& a, int64_t i, int64_t c) {
    for (; i + R <= a.rows; i += R) tile<N, R, kPart>(a, i, c);
    if constexpr (R > 1) {
      if (i < a.rows) rows<N, R - 1, kPart>(a, i, c);
    }
  }

  template <int N, int R, bool kPart>
  static void tile(const AddProducts& a, int64_t row, int64_t c) {
    const int64_t rest = a.columns - c;  // of a part
    const auto load = [&](const float* from) { return kPart ? V::load_part(from, rest) : V::load(from); };
    const float* weights[R];
    F sums[R][N];
    unroll<R>([&](auto i) {
      weights[i] = a.weights + (row + i) * a.row_step;
      const float* out = a.out + (row + i) * a.out_stride + c;
      unroll<N>([&](auto n) { sums[i][n] = load(out + n * 16); });
    });
    const float* y = a.y + c;
    for (int64_t r = 0; r < a.terms; ++r, y += a.y_stride) {
      F v[N];
      unroll<N>([&](auto n) { v[n] = load(y + n * 16); });
      unroll<R>([&](auto i) {
        const F w = V::set(*weights[i]);
        weights[i] += a.term_step;
        unroll<N>([&](auto n) { sums[i][n] = V::fma(w, v[n], sums[i][n]); });
      });
    }
    unroll<R>([&](auto i) {
      float* out = a.out + (row + i) * a.out_stride + c;
      if constexpr (kPart) {
        V::store_part(out, sums[i][0], rest);
      } else {
        unroll<N>([&](auto n) { V::store(out + n * 16, sums[i][n]); });
      }
    });
  }
};

}  // namespace qiao::cpu
