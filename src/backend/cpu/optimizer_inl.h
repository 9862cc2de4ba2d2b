// Plan: one pass over memory, which is the limit; separate roundings, so that all sets agree bit for bit.
#pragma once

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
};

}  // namespace qiao::cpu
