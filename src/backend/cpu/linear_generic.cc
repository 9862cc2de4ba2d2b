// Matmul kernels in plain C++: for machines without the sets below, and the plainest form of what every set
// computes. A fused multiply-add is one rounding here too, whatever the processor.
#include <type_traits>

#include "backend/cpu/e4m3_inl.h"
#include "backend/cpu/linear_kernels.h"
#include "tensor/half.h"

namespace qiao::cpu {
namespace {

#include "backend/cpu/linear_unpack_inl.h"

#include "backend/cpu/linear_micro_inl.h"

struct Lanes {
  static constexpr int kRows = 1, kGroups = 1, kFloatRows = 1, kPackedRows = 1;
  static constexpr bool kShorts = false;
  struct F {
    float lane[16];
  };
  struct I {
    int32_t lane[16];
  };
  using W = const uint8_t*;
  using X = const int8_t*;

  static F load(const float* p) {
    F f;
    __builtin_memcpy(&f, p, sizeof f);
    return f;
  }
  static void store(float* p, const F& f) { __builtin_memcpy(p, &f, sizeof f); }
  static F splat(const float* p) {
    F f;
    for (float& lane : f.lane) lane = *p;
    return f;
  }
  static F mul(F a, const F& b) {
    for (int i = 0; i < 16; ++i) a.lane[i] *= b.lane[i];
    return a;
  }
  static F fma(const F& a, const F& b, F c) {
    for (int i = 0; i < 16; ++i) c.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return c;
  }
  static F to_float(const I& a) {
    F f;
    for (int i = 0; i < 16; ++i) f.lane[i] = static_cast<float>(a.lane[i]);
    return f;
  }
  static I zero() { return {}; }
  static I splat(const int32_t* p) {
    I a;
    for (int32_t& lane : a.lane) lane = *p;
    return a;
  }
  static I sub(I a, const I& b) {
    for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i];
    return a;
  }
  static I shift_left(I a, int count) {
    for (int32_t& lane : a.lane) lane *= 1 << count;
    return a;
  }
  static W load_weights(const uint8_t* p) { return p; }
  static X splat_activations(const int8_t* p) { return p; }
  template <Width>
  static I dot(I sum, W w, X x) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 4; ++j) sum.lane[i] += w[4 * i + j] * x[j];
    }
    return sum;
  }
  static F load_step(const float* p) { return load(p); }
  static F splat_step(const float* p) { return splat(p); }
  static F step(const F& w, const F& x, const F& sum) { return fma(w, x, sum); }
  static F load_step(const Half* p) {
    F f;
    for (int i = 0; i < 16; ++i) f.lane[i] = f16_to_float(p[i].bits);
    return f;
  }
  struct Two {
    F low, high;
  };
  static Two load_step(const HalfPair* p) {
    Two two;
    for (int i = 0; i < 16; ++i) {
      two.low.lane[i] = bf16_to_float(p[i].low);
      two.high.lane[i] = bf16_to_float(p[i].high);
    }
    return two;
  }
  static Two splat_step(const FloatPair* p) { return {splat(&p->low), splat(&p->high)}; }
  static F step(const Two& w, const Two& x, const F& sum) {
    return fma(w.high, x.high, fma(w.low, x.low, sum));
  }
};

}  // namespace

const LinearKernels& linear_kernels_generic() {
  static const LinearKernels table = make_table<Lanes>(Isa::kGeneric);
  return table;
}

}  // namespace qiao::cpu
