// Plan: F8_E4M3 by KvWrite's rule. A row's largest number tells its scale, a power of two; then sixteen
// tokens that fill a group of keys are transposed, so that lanes are tokens and each has its own. The same
// operations whichever way.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backend/cpu/element.h"
#include "backend/ops/attention.h"
#include "tensor/half.h"

namespace qiao::cpu {

template <class V>
struct F8Writer {
  using F = typename V::F;

  static int64_t row_bytes(int64_t dim) { return E4m3::kScaleBytes + dim; }

  // Sixteen rows, `stride` apart, into a group.
  static void group(const float* rows, int64_t stride, int64_t dim, char* out) {
    Scale scales[16];
    float inverses[16];
    bool whole = true;
    for (int i = 0; i < 16; ++i) {
      scales[i] = scale_of(rows + i * stride, dim);
      inverses[i] = scales[i].inverse;
      whole = whole && !std::isnan(scales[i].scale);
    }
    if (!whole) {
      for (int i = 0; i < 16; ++i) lane(rows + i * stride, dim, i, out);
      return;
    }
    auto* to = reinterpret_cast<float*>(out);
    for (int i = 0; i < 16; ++i) to[i] = scales[i].scale;
    auto* numbers = reinterpret_cast<E4m3*>(to + 16);
    const F by = V::load(inverses);
    for (int64_t d = 0; d < dim; d += 16) {
      F x[16];
      for (int i = 0; i < 16; ++i) x[i] = V::load(rows + i * stride + d);
      V::transpose(x);
      for (int i = 0; i < 16; ++i) V::store(numbers + (d + i) * 16, V::mul(x[i], by));
    }
  }

  static void row(const float* x, int64_t dim, char* out) {
    const Scale scale = scale_of(x, dim);
    std::memcpy(out, &scale.scale, sizeof scale.scale);
    auto* numbers = reinterpret_cast<E4m3*>(out + E4m3::kScaleBytes);
    for (int64_t d = 0; d < dim; d += 16) sixteen(x + d, scale, numbers + d);
  }

  // One row into its lane of a group.
  static void lane(const float* x, int64_t dim, int64_t lane, char* out) {
    const Scale scale = scale_of(x, dim);
    reinterpret_cast<float*>(out)[lane] = scale.scale;
    auto* to = reinterpret_cast<E4m3*>(out + 16 * E4m3::kScaleBytes) + lane;
    for (int64_t d = 0; d < dim; d += 16) {
      E4m3 numbers[16];
      sixteen(x + d, scale, numbers);
      for (int i = 0; i < 16; ++i) to[(d + i) * 16] = numbers[i];
    }
  }

 private:
  struct Scale {
    float scale, inverse;
  };

  static Scale scale_of(const float* x, int64_t dim) {
    F most = V::set(0.0f), sum = most;
    for (int64_t d = 0; d < dim; d += 16) {
      const F magnitude = V::abs(V::load(x + d));
      most = V::max(most, magnitude);
      sum = V::add(sum, magnitude);  // a NaN where there is one
    }
    if (V::bits(V::at_most(sum, V::set(INFINITY))) != 0xffffu) return {NAN, NAN};
    const float largest = V::largest(most);
    if (largest < kF8Smallest) return {0, 0};
    // The exponent of largest / 448, and one more where its fraction is more than 448's, 1.75.
    const uint32_t up = (std::bit_cast<uint32_t>(largest) + 0x1fffffu) >> 23;
    const uint32_t bits = std::min((up - 8) << 23, std::bit_cast<uint32_t>(kF8MostScale));
    return {std::bit_cast<float>(bits), std::bit_cast<float>(0x7f000000u - bits)};
  }

  static void sixteen(const float* x, const Scale& scale, E4m3* numbers) {
    if (std::isnan(scale.scale)) {
      std::memset(numbers, kNanE4M3, 16);
    } else {
      V::store(numbers, V::mul(V::load(x), V::set(scale.inverse)));
    }
  }
};

}  // namespace qiao::cpu
