// Plan: one pass over memory, which is the limit; separate roundings, so that all sets agree bit for bit.
// Moments of BF16 and of codes are spread out to F32 a block at a time, in the L1 cache; a code is found by
// two look-ups, sixteen at a time, which then are the limit.
#pragma once

#include <bit>

#include "backend/cpu/element.h"
#include "backend/cpu/optimizer_kernels.h"

namespace qiao::cpu {

template <class V>
struct OptimizerKernel {
  using F = typename V::F;

  static double squares(const float* x, int64_t count) {
    typename V::Sum sum;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) sum.add_squares(V::load(x + i));
    if (i < count) sum.add_squares(V::load_part(x + i, count - i));
    double lanes[16], all = 0;
    sum.store(lanes);
    for (const double lane : lanes) all += lane;
    return all;
  }

  static void adamw(const AdamWConstants& c, const float* gradients, float* parameters, float* first_moment,
                    float* second_moment, int64_t count) {
    const auto step = [&](F gradient, F& p, F& m, F& v) {
      const F g = V::mul(V::set(c.gradient_scale), gradient);
      m = V::add(V::mul(V::set(c.beta1), m), V::mul(V::set(c.beta1_rest), g));
      v = V::add(V::mul(V::set(c.beta2), v), V::mul(V::set(c.beta2_rest), V::mul(g, g)));
      const F divisor = V::add(V::mul(V::sqrt(v), V::set(c.root)), V::set(c.epsilon));
      p = V::sub(V::mul(V::set(c.decay), p), V::mul(V::set(c.step_size), V::div(m, divisor)));
    };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      F p = V::load(parameters + i), m = V::load(first_moment + i), v = V::load(second_moment + i);
      step(V::load(gradients + i), p, m, v);
      V::store(parameters + i, p);
      V::store(first_moment + i, m);
      V::store(second_moment + i, v);
    }
    if (const int64_t rest = count - i; rest > 0) {
      F p = V::load_part(parameters + i, rest), m = V::load_part(first_moment + i, rest);
      F v = V::load_part(second_moment + i, rest);
      step(V::load_part(gradients + i, rest), p, m, v);
      V::store_part(parameters + i, p, rest);
      V::store_part(first_moment + i, m, rest);
      V::store_part(second_moment + i, v, rest);
    }
  }

  static void adamw_kept(const AdamWConstants& c, const float* gradients, float* parameters,
                         const KeptMoment& first_moment, const KeptMoment& second_moment, int64_t count) {
    alignas(64) float m[kBlock], v[kBlock];
    read(first_moment, m, count);
    read(second_moment, v, count);
    adamw(c, gradients, parameters, m, v, count);
    write(first_moment, m, count);
    write(second_moment, v, count);
  }

 private:
  static constexpr int64_t kBlock =
      256;  // a whole number of sixteens: what lies behind `count` is spread out too

  static void read(const KeptMoment& moment, float* to, int64_t count) {
    if (moment.tables == nullptr) {
      const auto* from = static_cast<const Brain*>(moment.values);
      int64_t i = 0;
      for (; i + 16 <= count; i += 16) V::store(to + i, V::load(from + i));
      if (i == count) return;
      Brain rest[16] = {};
      for (int64_t j = i; j < count; ++j) rest[j - i] = from[j];
      V::store(to + i, V::load(rest));
      return;
    }
    const auto* codes = static_cast<const uint8_t*>(moment.values);
    const F scale = V::set(*moment.scale);
    const float* value = moment.tables->value;
    for (int64_t i = 0; i < count; ++i) to[i] = value[codes[i]];
    for (int64_t i = 0; i < count; i += 16) V::store(to + i, V::mul(V::load(to + i), scale));
  }

  static void write(const KeptMoment& moment, float* from, int64_t count) {
    for (int64_t i = count; i % 16 != 0; ++i) from[i] = 0;
    if (moment.tables == nullptr) {
      auto* to = static_cast<Brain*>(moment.values);
      int64_t i = 0;
      for (; i + 16 <= count; i += 16) V::store(to + i, V::load(from + i));
      if (i == count) return;
      Brain rest[16];
      V::store(rest, V::load(from + i));
      for (int64_t j = i; j < count; ++j) to[j] = rest[j - i];
      return;
    }
    F most = V::set(0.0f);
    for (int64_t i = 0; i < count; i += 16) most = V::max(V::abs(V::load(from + i)), most);
    const float scale = V::largest(most);
    *moment.scale = scale;
    const F divisor = V::set(scale > 0 ? scale : 1.0f);  // all are 0
    alignas(64) float shares[kBlock];
    for (int64_t i = 0; i < count; i += 16) V::store(shares + i, V::div(V::load(from + i), divisor));
    auto* codes = static_cast<uint8_t*>(moment.values);
    find(*moment.tables, shares, count, codes);
    if (moment.tables->is_signed) return;
    // A second moment above 0 never gets the code of 0.
    for (int64_t i = 0; i < count; ++i) codes[i] = codes[i] == 0 && from[i] > 0 ? 1 : codes[i];
  }

  // The codes of numbers from -1 to 1: their buckets in vectors, then two look-ups each.
  static void find(const CodeTables& tables, const float* shares, int64_t count, uint8_t* codes) {
    int32_t buckets[kBlock];
    const int64_t whole = (count + 15) / 16 * 16;
    for (int64_t j = 0; j < whole; ++j) {
      const auto bits = std::bit_cast<int32_t>(shares[j]);
      const int32_t magnitude = (bits & INT32_MAX) >> 16;
      const int32_t above = magnitude > tables.least ? magnitude : tables.least;
      const int32_t inside = above < tables.most ? above : tables.most;
      buckets[j] = inside - tables.least + (bits < 0 ? tables.negatives : 0);
    }
    const uint8_t* first = tables.first;
    const float* boundary = tables.boundary;
    for (int64_t j = 0; j < count; ++j) {
      const uint32_t code = first[buckets[j]];
      codes[j] = static_cast<uint8_t>(code + (boundary[code] < shares[j] ? 1u : 0u));
    }
  }
};

}  // namespace qiao::cpu
