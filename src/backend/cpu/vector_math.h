// Elementary functions over sixteen lanes, the same polynomial on every instruction set. Coefficients are
// least-maximum fits made for these intervals; errors are stated where they were measured against float64.
#pragma once

#include <cmath>

namespace qiao::cpu {

template <class V>
struct VectorMath {
  using F = typename V::F;

  // Coefficients of ascending powers.
  template <int N>
  static inline F polynomial(F x, const float (&c)[N]) {
    F y = V::set(c[N - 1]);
    for (int i = N - 2; i >= 0; --i) y = V::fma(y, x, V::set(c[i]));
    return y;
  }

  // e^x within 1 ulp; 0 below -104, infinity above 89, NaN kept.
  static inline F exp(F x) {
    x = V::max(V::set(-104.0f), V::min(V::set(89.0f), x));  // NaN passes: it is the second operand
    const F n = V::round(V::mul(x, V::set(1.44269504f)));
    F r = V::fnma(n, V::set(0.693359375f), x);  // exact: the constant has 9 bits
    r = V::fnma(n, V::set(-2.12194440e-4f), r);
    static constexpr float kSeries[] = {4.999999404e-01f, 1.666651517e-01f, 4.166845605e-02f,
                                        8.369421586e-03f, 1.381311333e-03f};
    const F tail = V::fma(V::mul(r, r), polynomial(r, kSeries), r);
    return V::scale(V::add(V::set(1.0f), tail), n);
  }

  // Within 2 ulp, small arguments included.
  static inline F tanh(F x) {
    const F magnitude = V::abs(x);
    static constexpr float kSeries[] = {-3.333328366e-01f, 1.333149076e-01f, -5.374345556e-02f,
                                        2.065046132e-02f, -5.716916639e-03f};
    const F square = V::mul(x, x);
    const F small = V::fma(V::mul(square, polynomial(square, kSeries)), x, x);
    const F twice = exp(V::add(magnitude, magnitude));
    const F large = V::sub(V::set(1.0f), V::div(V::set(2.0f), V::add(twice, V::set(1.0f))));
    return V::select(V::less(magnitude, V::set(0.625f)), small, V::with_sign(large, x));
  }

  // Within 2^-23 absolutely.
  static inline F erf(F x) {
    const F magnitude = V::min(V::set(4.0f), V::abs(x));
    static constexpr float kSmall[] = {1.128379107e+00f,  -3.761262596e-01f, 1.128360033e-01f,
                                       -2.685444430e-02f, 5.189533345e-03f,  -8.020825335e-04f,
                                       7.889065455e-05f};
    static constexpr float kLarge[] = {3.123172792e-04f, 1.127202868e+00f,  6.379638910e-01f,
                                       1.032572016e-01f, -2.190697193e-02f, 2.964134794e-03f,
                                       -1.879852935e-04f};
    const F small = V::mul(x, polynomial(V::mul(x, x), kSmall));
    const F tail = exp(V::sub(V::set(0.0f), polynomial(magnitude, kLarge)));
    const F large = V::with_sign(V::sub(V::set(1.0f), tail), x);
    return V::select(V::less(magnitude, V::set(1.0f)), small, large);
  }

  // Of angles within ±2^31, each within 2^-23 of the value's magnitude 1.
  static inline void sincos(F angle, F* sine, F* cosine) {
    F quarters;
    const F r = V::quarter_turns(angle, &quarters);
    const F square = V::mul(r, r);
    static constexpr float kSine[] = {-1.666665375e-01f, 8.332131431e-03f, -1.951082377e-04f};
    static constexpr float kCosine[] = {4.166664556e-02f, -1.388730598e-03f, 2.443117592e-05f};
    const F s = V::fma(V::mul(square, r), polynomial(square, kSine), r);
    const F c = V::add(V::set(1.0f), V::fma(V::mul(square, square), polynomial(square, kCosine),
                                            V::mul(V::set(-0.5f), square)));
    // Quarter turns 1 and 3 swap sine and cosine; 2 and 3 negate the sine, 1 and 2 the cosine.
    const auto odd =
        V::less(V::abs(V::sub(V::abs(V::sub(quarters, V::set(2.0f))), V::set(1.0f))), V::set(0.5f));
    const F negative = V::set(-1.0f), positive = V::set(1.0f);
    const F sine_sign = V::select(V::less(quarters, V::set(1.5f)), positive, negative);
    const F cosine_sign =
        V::select(V::less(V::abs(V::sub(quarters, V::set(1.5f))), V::set(1.0f)), negative, positive);
    *sine = V::mul(V::select(odd, c, s), sine_sign);
    *cosine = V::mul(V::select(odd, s, c), cosine_sign);
  }
};

}  // namespace qiao::cpu
