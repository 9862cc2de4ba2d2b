// Plan, for a block of 64 keys met by some rows (queries × heads that share the key/value head):
//   scores  tiles of kTileRows rows × kTileVectors groups of 16 keys: a lane is a key and walks D in order;
//   the
//           keys are converted as they are loaded, once a tile, and each q is broadcast once for all groups.
//   softmax a row at a time: scale, cap, mask, maximum, exponential, sum; the block's weights replace its
//   scores. values  tiles of kTileRows rows × kTileVectors vectors of dimensions: a lane is a dimension and
//   walks the
//           block's keys in order; what came before is scaled as the tile loads it.
// Keys outside [first, end) may be anything, NaN too: their scores are replaced and their values not read.
// A tile's accumulators fill the registers (24 of 32 on AVX-512), so the multiply-adds are the limit in
// prefill; with one row a head (decode) it is reading the pages, fetched a block ahead. Reached on Zen 4 with
// F16 pages: tiles 95% of the multiply-add peak, whole blocks of 60 rows 81% (D 64) to 91% (D 256); the
// softmax takes 25 ns a row. Decoding at 32768 tokens reads 14 to 18 GB/s a thread.
#pragma once

#include <cmath>

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/element.h"
#include "backend/cpu/unroll.h"
#include "backend/cpu/vector_math.h"

namespace qiao::cpu {

// The keys of a group, as a tile walks them: dimension by dimension, in runs of kRun that open() begins.
template <class V, typename T>
struct GroupKeys {
  static constexpr int64_t kRun = INT64_MAX / 2;
  const T* here;
  const T* next;
  GroupKeys() = default;
  GroupKeys(const void* keys, const void* following)
      : here(static_cast<const T*>(keys)), next(static_cast<const T*>(following)) {}
  void open(int64_t) {}
  typename V::F load(int64_t d) const {
    V::fetch(next + d * 16);
    return V::load(here + d * 16);
  }
  static typename V::F total(typename V::F sum) { return sum; }
};

template <class V>
struct GroupKeys<V, Q8> {
  static constexpr int64_t kRun = Q8::kNumbers;
  const char* here;
  const char* next;
  typename V::F scale;
  GroupKeys() = default;
  GroupKeys(const void* keys, const void* following)
      : here(static_cast<const char*>(keys)), next(static_cast<const char*>(following)) {}
  // A run's scales, then its numbers, lie where 16 * d leads once the scales before them are passed by.
  void open(int64_t d) {
    constexpr auto kScales = static_cast<int64_t>(16 * sizeof(Half));
    scale = V::load(reinterpret_cast<const Half*>(here + d * 16));
    here += kScales;
    next += kScales;
  }
  typename V::F load(int64_t d) const {
    V::fetch(next + d * 16);
    return V::mul(V::load(reinterpret_cast<const int8_t*>(here + d * 16)), scale);
  }
  static typename V::F total(typename V::F sum) { return sum; }
};

// A key's scale, a power of two, is its sum's as well: one product a key for all of D.
template <class V>
struct GroupKeys<V, E4m3> {
  static constexpr int64_t kRun = INT64_MAX / 2;
  const char* here;
  const char* next;
  GroupKeys() = default;
  GroupKeys(const void* keys, const void* following)
      : here(static_cast<const char*>(keys)), next(static_cast<const char*>(following)) {}
  void open(int64_t) {}
  typename V::F load(int64_t d) const {
    V::fetch(next + (d + E4m3::kScaleBytes) * 16);
    return V::load(reinterpret_cast<const E4m3*>(here + (d + E4m3::kScaleBytes) * 16));
  }
  typename V::F total(typename V::F sum) const {
    return V::mul(sum, V::mul(V::load(reinterpret_cast<const float*>(here)), V::set(V::kE4m3Unit)));
  }
};

// The values of a token from dimension d on, a register at a time.
template <class V, typename T>
struct TokenValues {
  static constexpr int64_t row_bytes(int64_t pitch) { return pitch * static_cast<int64_t>(sizeof(T)); }
  static const void* at(const void* row, int64_t d) { return static_cast<const T*>(row) + d; }
  static typename V::F load(const void* row, int64_t d) { return V::load(static_cast<const T*>(row) + d); }
};

template <class V>
struct TokenValues<V, Q8> {
  static constexpr int64_t row_bytes(int64_t pitch) { return pitch / Q8::kNumbers * Q8::kBytes; }
  static const char* at(const void* row, int64_t d) {
    return static_cast<const char*>(row) + d / Q8::kNumbers * Q8::kBytes;
  }
  static typename V::F load(const void* row, int64_t d) {
    const char* block = at(row, d);
    const auto* numbers = reinterpret_cast<const int8_t*>(block + sizeof(Half)) + d % Q8::kNumbers;
    return V::mul(V::load(numbers), V::set(reinterpret_cast<const Half*>(block)));
  }
};

template <class V>
struct TokenValues<V, E4m3> {
  static constexpr int64_t row_bytes(int64_t pitch) { return pitch + E4m3::kScaleBytes; }
  static const char* at(const void* row, int64_t d) {
    return static_cast<const char*>(row) + E4m3::kScaleBytes + d;
  }
  static typename V::F load(const void* row, int64_t d) {
    return V::mul(V::load(reinterpret_cast<const E4m3*>(at(row, d))),
                  V::set(*static_cast<const float*>(row) * V::kE4m3Unit));
  }
};

template <class V>
struct AttentionKernel {
  using F = typename V::F;
  using Math = VectorMath<V>;
  static constexpr int kRows = V::kTileRows, kVectors = V::kTileVectors;

  template <typename T>
  static void add(const AttentionBlock& block, const AttentionRows& rows) {
    score_rows<T, kRows>(block, 0);
    float* rescale = block.scores + block.rows * kBlockKeys;
    for (int64_t r = 0; r < block.rows; ++r) {
      const float before = rows.sum[r] == 0.0f ? -INFINITY : rows.largest[r];
      const float here = shape_scores(block, r);
      rows.largest[r] = here > before ? here : before;
      rescale[r] = before - rows.largest[r];
    }
    for (int64_t r = 0; r < block.rows; r += 16) {
      const int64_t count = block.rows - r < 16 ? block.rows - r : 16;
      const F had = V::load_part(rows.sum + r, count);
      // A row without keys yet has nothing to rescale: 0, whatever its score.
      const F by =
          V::select(V::at_most(had, V::set(0.0f)), V::set(0.0f), Math::exp(V::load_part(rescale + r, count)));
      V::store_part(rescale + r, by, count);
    }
    for (int64_t r = 0; r < block.rows; ++r) {
      const float weights = weigh(block.scores + r * kBlockKeys, rows.largest[r]);
      rows.sum[r] = V::lane0(V::fma(V::set(rows.sum[r]), V::set(rescale[r]), V::set(weights)));
    }
    value_rows<T, kRows>(block, rescale, rows.out, 0);
  }

  static void merge(const AttentionRows& rows, const AttentionRows& more, int64_t count, int64_t pitch) {
    for (int64_t r = 0; r < count; ++r) {
      if (more.sum[r] == 0.0f) continue;
      float* out = rows.out + r * pitch;
      const float* added = more.out + r * pitch;
      if (rows.sum[r] == 0.0f) {
        rows.largest[r] = more.largest[r];
        rows.sum[r] = more.sum[r];
        for (int64_t d = 0; d < pitch; d += 16) V::store(out + d, V::load(added + d));
        continue;
      }
      const float largest = rows.largest[r] < more.largest[r] ? more.largest[r] : rows.largest[r];
      const F mine = Math::exp(V::set(rows.largest[r] - largest));
      const F theirs = Math::exp(V::set(more.largest[r] - largest));
      rows.largest[r] = largest;
      rows.sum[r] = rows.sum[r] * V::lane0(mine) + more.sum[r] * V::lane0(theirs);
      for (int64_t d = 0; d < pitch; d += 16) {
        V::store(out + d, V::fma(V::load(added + d), theirs, V::mul(V::load(out + d), mine)));
      }
    }
  }

  static void finish(const AttentionRows& rows, int64_t row, int64_t pitch, int64_t dim, float* out) {
    const F sum = V::set(rows.sum[row]);
    const float* from = rows.out + row * pitch;
    int64_t d = 0;
    for (; d + 16 <= dim; d += 16) V::store(out + d, V::div(V::load(from + d), sum));
    if (d < dim) V::store_part(out + d, V::div(V::load(from + d), sum), dim - d);
  }

  static void dots(const AttentionBlock& block) { score_rows<float, kRows>(block, 0); }

  static float dot(const float* a, const float* b, int64_t count) {
    F sum = V::set(0.0f);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) sum = V::fma(V::load(a + i), V::load(b + i), sum);
    if (i < count) sum = V::fma(V::load_part(a + i, count - i), V::load_part(b + i, count - i), sum);
    return V::sum(sum);
  }

  static void gradients(const AttentionSlopes& slopes) {
    const F scale = V::set(slopes.scale), cap = V::set(slopes.soft_cap), zero = V::set(0.0f);
    for (int64_t r = 0; r < slopes.rows; ++r) {
      const int64_t place = slopes.position + r;
      const int64_t first = slopes.causal && slopes.window > 0 ? place - slopes.window + 1 : 0;
      const int64_t last = slopes.causal && place + 1 < slopes.keys ? place + 1 : slopes.keys;
      const F shift = V::set(slopes.log_sum_exp[r * slopes.row_step]);
      const F delta = V::set(slopes.delta[r * slopes.row_step]);
      for (int64_t g = 0; g < kBlockGroups; ++g) {
        float* scores = slopes.scores + r * kBlockKeys + g * 16;
        float* products = slopes.products + r * kBlockKeys + g * 16;
        const int64_t begin = first - g * 16, end = last - g * 16;
        if (end <= 0 || begin >= 16) {
          V::store(scores, zero);
          V::store(products, zero);
          continue;
        }
        F s = V::mul(V::load(scores), scale), slope = scale;
        if (slopes.soft_cap > 0) {
          const F share = Math::tanh(V::div(s, cap));
          s = V::mul(cap, share);
          slope = V::mul(V::fnma(share, share, V::set(1.0f)), scale);
        }
        F p = Math::exp(V::sub(s, shift));
        F ds = V::mul(V::mul(p, V::sub(V::load(products), delta)), slope);
        if (end < 16) p = V::select(V::first(end), p, zero), ds = V::select(V::first(end), ds, zero);
        if (begin > 0) p = V::select(V::first(begin), zero, p), ds = V::select(V::first(begin), zero, ds);
        V::store(scores, p);
        V::store(products, ds);
      }
    }
  }

 private:
  // Rows from `r` on: tiles of R rows, then the rest in a smaller one.
  template <typename T, int R>
  static void score_rows(const AttentionBlock& block, int64_t r) {
    for (; r + R <= block.rows; r += R) score_groups<T, R, kVectors>(block, r, block.first / 16);
    if constexpr (R > 1) {
      if (r < block.rows) score_rows<T, R - 1>(block, r);
    }
  }

  // Groups from `group` on: tiles of N, then the rest in narrower ones.
  template <typename T, int R, int N>
  static void score_groups(const AttentionBlock& block, int64_t r, int64_t group) {
    const int64_t end = (block.end + 15) / 16;
    for (; group + N <= end; group += N) score_tile<T, R, N>(block, r, group);
    if constexpr (N > 1) {
      if (group < end) score_groups<T, R, N / 2>(block, r, group);
    }
  }

  template <typename T, int R, int N>
  static void score_tile(const AttentionBlock& block, int64_t r, int64_t group) {
    using Keys = GroupKeys<V, T>;
    const float* q[R];
    Keys keys[N];
    F sums[R][N];
    unroll<R>([&](auto i) {
      q[i] = block.q + (r + i) * block.dim;
      unroll<N>([&](auto n) { sums[i][n] = V::set(0.0f); });
    });
    unroll<N>([&](auto n) { keys[n] = Keys(block.here.keys[group + n], block.next.keys[group + n]); });
    for (int64_t d = 0; d < block.dim;) {
      const int64_t end = block.dim - d < Keys::kRun ? block.dim : d + Keys::kRun;
      unroll<N>([&](auto n) { keys[n].open(d); });
      for (; d < end; ++d) {
        F k[N];
        unroll<N>([&](auto n) { k[n] = keys[n].load(d); });
        unroll<R>([&](auto i) {
          const F x = V::set(q[i][d]);
          unroll<N>([&](auto n) { sums[i][n] = V::fma(x, k[n], sums[i][n]); });
        });
      }
    }
    unroll<R>([&](auto i) {
      float* scores = block.scores + (r + i) * kBlockKeys + group * 16;
      unroll<N>([&](auto n) { V::store(scores + n * 16, keys[n].total(sums[i][n])); });
    });
  }

  // Scales, biases, caps and masks a row's scores; returns the largest.
  static float shape_scores(const AttentionBlock& block, int64_t row) {
    float* scores = block.scores + row * kBlockKeys;
    F most = V::set(-INFINITY);
    for (int64_t g = 0; g < kBlockGroups; ++g) {
      const int64_t begin = block.first - g * 16, end = block.end - g * 16;
      F s = V::set(-INFINITY);
      if (end > 0 && begin < 16) {
        s = V::mul(V::load(scores + g * 16), V::set(block.scale));
        if (block.bias != nullptr) s = V::add(s, V::load(block.bias + row * kBlockKeys + g * 16));
        if (block.soft_cap > 0) {
          const F cap = V::set(block.soft_cap);
          s = V::mul(cap, Math::tanh(V::div(s, cap)));
        }
        if (end < 16) s = V::select(V::first(end), s, V::set(-INFINITY));
        if (begin > 0) s = V::select(V::first(begin), V::set(-INFINITY), s);
      }
      V::store(scores + g * 16, s);
      most = V::max(most, s);
    }
    return V::largest(most);
  }

  // Scores to weights exp(score - largest); returns their sum.
  static float weigh(float* scores, float largest) {
    const F shift = V::set(largest);
    F s[kBlockGroups];
    for (int64_t g = 0; g < kBlockGroups; ++g) {
      s[g] = Math::exp(V::sub(V::load(scores + g * 16), shift));
      V::store(scores + g * 16, s[g]);
    }
    return V::sum(V::add(V::add(s[0], s[1]), V::add(s[2], s[3])));
  }

  template <typename T, int R>
  static void value_rows(const AttentionBlock& block, const float* rescale, float* out, int64_t r) {
    for (; r + R <= block.rows; r += R) value_columns<T, R, kVectors>(block, rescale, out, r, 0);
    if constexpr (R > 1) {
      if (r < block.rows) value_rows<T, R - 1>(block, rescale, out, r);
    }
  }

  template <typename T, int R, int N>
  static void value_columns(const AttentionBlock& block, const float* rescale, float* out, int64_t r,
                            int64_t d) {
    for (; d + 16 * N <= block.pitch; d += 16 * N) value_tile<T, R, N>(block, rescale, out, r, d);
    if constexpr (N > 1) {
      if (d < block.pitch) value_columns<T, R, N / 2>(block, rescale, out, r, d);
    }
  }

  template <typename T, int R, int N>
  static void value_tile(const AttentionBlock& block, const float* rescale, float* out, int64_t r,
                         int64_t d) {
    const float* weights[R];
    F sums[R][N];
    unroll<R>([&](auto i) {
      weights[i] = block.scores + (r + i) * kBlockKeys;
      const float* before = out + (r + i) * block.pitch + d;
      // A row without keys yet has nothing to scale, and its memory holds anything.
      if (const float by = rescale[r + i]; by == 0.0f) {
        unroll<N>([&](auto n) { sums[i][n] = V::set(0.0f); });
      } else {
        unroll<N>([&](auto n) { sums[i][n] = V::mul(V::load(before + n * 16), V::set(by)); });
      }
    });
    int64_t j = block.first;
    while (j < block.end) {
      using Values = TokenValues<V, T>;
      const int64_t group = j / 16, row = Values::row_bytes(block.pitch);
      const char* values = static_cast<const char*>(block.here.values[group]) + j % 16 * row;
      const char* next = static_cast<const char*>(block.next.values[group]) + j % 16 * row;
      const int64_t end = block.end < (group + 1) * 16 ? block.end : (group + 1) * 16;
      for (; j < end; ++j, values += row, next += row) {
        F v[N];
        unroll<N>([&](auto n) {
          v[n] = Values::load(values, d + n * 16);
          V::fetch(Values::at(next, d + n * 16));
        });
        unroll<R>([&](auto i) {
          const F w = V::set(weights[i][j]);
          unroll<N>([&](auto n) { sums[i][n] = V::fma(w, v[n], sums[i][n]); });
        });
      }
    }
    unroll<R>([&](auto i) {
      float* after = out + (r + i) * block.pitch + d;
      unroll<N>([&](auto n) { V::store(after + n * 16, sums[i][n]); });
    });
  }
};

}  // namespace qiao::cpu
