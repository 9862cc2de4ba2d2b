// Plan: Q8_0 by KvWrite's rule, two registers a block. Sixteen tokens that fill a group of keys are
// transposed, so that lanes are tokens and each has its own scale; any other row's block has its largest
// number found across the lanes. The same operations either way.
#pragma once

#include <cmath>

#include "backend/cpu/element.h"

namespace qiao::cpu {

template <class V>
struct Q8Writer {
  using F = typename V::F;

  static int64_t row_bytes(int64_t dim) { return dim / Q8::kNumbers * Q8::kBytes; }

  // Sixteen rows, `stride` apart, into a group.
  static void group(const float* rows, int64_t stride, int64_t dim, char* out) {
    for (int64_t d = 0; d < dim; d += Q8::kNumbers, out += Q8::kGroupBytes) {
      F x[2][16];
      F most = V::set(0.0f);
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 16; ++i) x[half][i] = V::load(rows + i * stride + d + 16 * half);
        V::transpose(x[half]);
        for (int i = 0; i < 16; ++i) most = larger(V::abs(x[half][i]), most);
      }
      const F inverse = write_scales(most, reinterpret_cast<Half*>(out));
      auto* numbers = reinterpret_cast<int8_t*>(out + 16 * sizeof(Half));
      for (int i = 0; i < 32; ++i) V::store(numbers + 16 * i, number(x[i / 16][i % 16], inverse));
    }
  }

  // One row into blocks in a row.
  static void row(const float* x, int64_t dim, char* out) {
    for (int64_t d = 0; d < dim; d += Q8::kNumbers, out += Q8::kBytes)
      block(x + d, reinterpret_cast<Half*>(out), reinterpret_cast<int8_t*>(out + sizeof(Half)));
  }

  // One row into its lane of a group.
  static void lane(const float* x, int64_t dim, int64_t lane, char* out) {
    for (int64_t d = 0; d < dim; d += Q8::kNumbers, out += Q8::kGroupBytes) {
      int8_t numbers[32];
      block(x + d, reinterpret_cast<Half*>(out) + lane, numbers);
      auto* to = reinterpret_cast<int8_t*>(out + 16 * sizeof(Half)) + lane;
      for (int i = 0; i < 32; ++i) to[16 * i] = numbers[i];
    }
  }

 private:
  // NaN where either is.
  static F larger(F magnitude, F most) {
    return V::select(V::at_most(magnitude, V::set(INFINITY)), V::max(magnitude, most), magnitude);
  }

  // Stores the scale of each lane's block; returns what its numbers are multiplied by.
  static F write_scales(F most, Half* scales) {
    V::store(scales, V::min(V::set(65504.0f), V::div(most, V::set(127.0f))));
    const F scale = V::load(scales);
    return V::select(V::less(V::set(0.0f), scale), V::div(V::set(1.0f), scale), V::set(0.0f));
  }

  static F number(F x, F inverse) {
    return V::max(V::min(V::round(V::mul(x, inverse)), V::set(127.0f)), V::set(-127.0f));
  }

  static void block(const float* x, Half* scale, int8_t* numbers) {
    const F a = V::load(x), b = V::load(x + 16);
    F most = larger(V::abs(a), V::set(0.0f));
    most = larger(V::abs(b), most);
    const bool whole = V::bits(V::at_most(most, V::set(INFINITY))) == 0xffffu;
    Half scales[16];
    const F inverse = write_scales(V::set(whole ? V::largest(most) : NAN), scales);
    *scale = scales[0];
    V::store(numbers, number(a, inverse));
    V::store(numbers + 16, number(b, inverse));
  }
};

}  // namespace qiao::cpu
