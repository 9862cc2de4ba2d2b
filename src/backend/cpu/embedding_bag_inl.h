// Plan: some vectors of a bag's columns stay in registers while its rows go by, those of the rows to come
// being asked of memory kAhead rows before; then the next columns. So each row is read once, at whatever
// latency, and the sum is in the ids' order. The limit is memory; measured: docs/performance.md.
#pragma once

#include <algorithm>
#include <cstring>

#include "backend/cpu/element.h"
#include "backend/cpu/embedding_bag_kernels.h"

namespace qiao::cpu {

template <class V>
struct EmbeddingBagKernel {
  using F = typename V::F;
  static constexpr int kVectors = 2 * V::kTileVectors;
  static constexpr int64_t kAhead = 48;

  // Up to 16 elements; zeros behind them.
  static inline F load_some(const float* p, int64_t n) { return V::load_part(p, n); }
  template <class Element>
  static inline F load_some(const Element* p, int64_t n) {
    Element some[16] = {};
    std::memcpy(some, p, static_cast<size_t>(n) * sizeof(Element));
    return V::load(some);
  }

  // Columns [c, c + 16 kCount) of a bag, of which the last vector may have fewer.
  template <int kCount, class Element>
  static inline void columns(const BagTable& table, const BagSum& bag, int64_t c, int64_t last) {
    const auto* rows = static_cast<const Element*>(table.data) + c;
    F sums[kCount];
    for (F& sum : sums) sum = V::set(0.0f);
    if (bag.add) {
      for (int v = 0; v + 1 < kCount; ++v) sums[v] = V::load(bag.out + c + 16 * v);
      sums[kCount - 1] = V::load_part(bag.out + c + 16 * (kCount - 1), last);
    }
    int64_t members = 0;
    for (int64_t i = 0; i < bag.count; ++i) {
      if (i + kAhead < bag.readable && table.has(bag.ids[i + kAhead])) {
        const auto* ahead = reinterpret_cast<const char*>(rows + bag.ids[i + kAhead] * table.stride);
        for (size_t at = 0; at < kCount * 16 * sizeof(Element); at += 64) V::fetch(ahead + at);
      }
      const int32_t id = bag.ids[i];
      if (!table.has(id)) continue;
      ++members;
      const Element* row = rows + id * table.stride;
      const F weight = V::set(bag.weights == nullptr ? 1.0f : bag.weights[i]);
      for (int v = 0; v + 1 < kCount; ++v) sums[v] = V::fma(weight, V::load(row + 16 * v), sums[v]);
      const Element* rest = row + 16 * (kCount - 1);
      const F value = last == 16 ? V::load(rest) : load_some(rest, last);
      sums[kCount - 1] = V::fma(weight, value, sums[kCount - 1]);
    }
    if (bag.mean && members > 1) {
      for (F& sum : sums) sum = V::div(sum, V::set(static_cast<float>(members)));
    }
    for (int v = 0; v + 1 < kCount; ++v) V::store(bag.out + c + 16 * v, sums[v]);
    V::store_part(bag.out + c + 16 * (kCount - 1), sums[kCount - 1], last);
  }

  template <class Element>
  static void sum_of(const BagTable& table, const BagSum& bag) {
    for (int64_t c = 0; c < table.columns;) {
      const int64_t vectors = (table.columns - c + 15) / 16;
      const int64_t taken = vectors >= kVectors ? kVectors : vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1;
      const int64_t last = std::min<int64_t>(16, table.columns - c - 16 * (taken - 1));
      if (taken == kVectors) {
        columns<kVectors, Element>(table, bag, c, last);
      } else if (taken == 4) {
        columns<4, Element>(table, bag, c, last);
      } else if (taken == 2) {
        columns<2, Element>(table, bag, c, last);
      } else {
        columns<1, Element>(table, bag, c, last);
      }
      c += 16 * taken;
    }
  }

  template <class Element>
  static float dot_of(const BagTable& table, int64_t row, const float* x) {
    const auto* values = static_cast<const Element*>(table.data) + row * table.stride;
    F sum = V::set(0.0f);
    int64_t c = 0;
    for (; c + 16 <= table.columns; c += 16) sum = V::fma(V::load(values + c), V::load(x + c), sum);
    if (const int64_t rest = table.columns - c; rest > 0)
      sum = V::fma(load_some(values + c, rest), V::load_part(x + c, rest), sum);
    return V::sum(sum);
  }

  static void sum(const BagTable& table, const BagSum& bag) {
    table.dtype == DType::kF32   ? sum_of<float>(table, bag)
    : table.dtype == DType::kF16 ? sum_of<Half>(table, bag)
                                 : sum_of<Brain>(table, bag);
  }
  static float dot(const BagTable& table, int64_t row, const float* x) {
    return table.dtype == DType::kF32   ? dot_of<float>(table, row, x)
           : table.dtype == DType::kF16 ? dot_of<Half>(table, row, x)
                                        : dot_of<Brain>(table, row, x);
  }
};

}  // namespace qiao::cpu
