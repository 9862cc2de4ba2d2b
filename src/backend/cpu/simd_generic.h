// Sixteen lanes of F32 in plain C++, for machines without a kernel set of their own: simd_avx512.h says what
// each function means. Small vectors of the compiler keep lanes in whatever registers there are.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "backend/cpu/element.h"
#include "backend/cpu/philox_words.h"
#include "tensor/half.h"

namespace qiao::cpu::generic {

struct Simd {
  static constexpr int kQuads = 4;
  typedef float Quad __attribute__((vector_size(16)));
  typedef int32_t Bits __attribute__((vector_size(16)));
  struct F {
    Quad q[kQuads];
  };
  struct M {
    Bits q[kQuads];
  };
  static constexpr int kTileVectors = 1, kTileRows = 2;  // accumulators of a tile: 8 of SSE2's 16 registers

  static F set(float x) {
    return each([&](int) { return Quad{x, x, x, x}; });
  }
  static void fetch(const void* p) { __builtin_prefetch(p, 0, 2); }
  static F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static F load(const Half* p) {
    return each([&](int i) {
      const Half* at = p + 4 * i;
      return Quad{f16_to_float(at[0].bits), f16_to_float(at[1].bits), f16_to_float(at[2].bits),
                  f16_to_float(at[3].bits)};
    });
  }
  static F load(const Brain* p) {
    return each([&](int i) {
      const Brain* at = p + 4 * i;
      return Quad{bf16_to_float(at[0].bits), bf16_to_float(at[1].bits), bf16_to_float(at[2].bits),
                  bf16_to_float(at[3].bits)};
    });
  }
  static F load(const int8_t* p) {
    return each([&](int i) {
      const int8_t* at = p + 4 * i;
      return Quad{static_cast<float>(at[0]), static_cast<float>(at[1]), static_cast<float>(at[2]),
                  static_cast<float>(at[3])};
    });
  }
  static constexpr float kE4m3Unit = 1;
  static F load(const E4m3* p) {
    return each([&](int i) {
      const E4m3* at = p + 4 * i;
      return Quad{e4m3_to_float(at[0].bits), e4m3_to_float(at[1].bits), e4m3_to_float(at[2].bits),
                  e4m3_to_float(at[3].bits)};
    });
  }
  static F set(const Half* p) { return set(f16_to_float(p->bits)); }
  static M first(int64_t n) { return mask(n >= 16 ? 0xffffu : (1u << n) - 1u); }
  static F load_part(const float* p, int64_t n) {
    F x = set(0.0f);
    std::memcpy(&x, p, static_cast<size_t>(n) * sizeof(float));
    return x;
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static void store(Half* p, F x) {
    for (int i = 0; i < 16; ++i) p[i].bits = float_to_f16(x.q[i / 4][i % 4]);
  }
  static void store(Brain* p, F x) {
    for (int i = 0; i < 16; ++i) p[i].bits = float_to_bf16(x.q[i / 4][i % 4]);
  }
  static void store(int8_t* p, F x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.q[i / 4][i % 4]);
  }
  static void store(E4m3* p, F x) {
    for (int i = 0; i < 16; ++i) p[i].bits = float_to_e4m3(x.q[i / 4][i % 4]);
  }
  static void store_part(float* p, F x, int64_t n) {
    std::memcpy(p, &x, static_cast<size_t>(n) * sizeof(float));
  }

  static F add(F a, F b) {
    return each([&](int i) { return a.q[i] + b.q[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.q[i] - b.q[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.q[i] * b.q[i]; });
  }
  static F div(F a, F b) {
    return each([&](int i) { return a.q[i] / b.q[i]; });
  }
  static F sqrt(F a) {
    return each([&](int i) {
      return Quad{std::sqrt(a.q[i][0]), std::sqrt(a.q[i][1]), std::sqrt(a.q[i][2]), std::sqrt(a.q[i][3])};
    });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return a.q[i] * b.q[i] + c.q[i]; });
  }
  static F fnma(F a, F b, F c) {
    return each([&](int i) { return c.q[i] - a.q[i] * b.q[i]; });
  }
  static F min(F a, F b) {
    return each([&](int i) { return a.q[i] < b.q[i] ? a.q[i] : b.q[i]; });
  }
  static F max(F a, F b) {
    return each([&](int i) { return a.q[i] > b.q[i] ? a.q[i] : b.q[i]; });
  }
  static F round(F a) {
    return each([&](int i) {
      return Quad{std::nearbyint(a.q[i][0]), std::nearbyint(a.q[i][1]), std::nearbyint(a.q[i][2]),
                  std::nearbyint(a.q[i][3])};
    });
  }
  static F brain(F a) {
    return each([&](int i) {
      const auto one = [&](int lane) { return bf16_to_float(float_to_bf16(a.q[i][lane])); };
      return Quad{one(0), one(1), one(2), one(3)};
    });
  }
  static F abs(F a) {
    return each([&](int i) { return to_floats(to_bits(a.q[i]) & INT32_MAX); });
  }
  static F with_sign(F magnitude, F sign) {
    return each([&](int i) { return to_floats(to_bits(magnitude.q[i]) | (to_bits(sign.q[i]) & INT32_MIN)); });
  }
  static void transpose(F (&x)[16]) {
    float columns[16][16];
    for (int i = 0; i < 16; ++i) {
      float row[16];
      store(row, x[i]);
      for (int c = 0; c < 16; ++c) columns[c][i] = row[c];
    }
    for (int c = 0; c < 16; ++c) x[c] = load(columns[c]);
  }
  static F swap_pairs(F a) {
    return each([&](int i) { return Quad{a.q[i][1], a.q[i][0], a.q[i][3], a.q[i][2]}; });
  }
  static F scale(F a, F n) {  // in two steps, so that results below the least normal number are right
    return each([&](int i) {
      const Bits whole = __builtin_convertvector(n.q[i], Bits);
      const Bits half = whole >> 1;
      return a.q[i] * to_floats((half + 127) << 23) * to_floats((whole - half + 127) << 23);
    });
  }
  static M less(F a, F b) {
    return each_mask([&](int i) { return a.q[i] < b.q[i]; });
  }
  static M at_most(F a, F b) {
    return each_mask([&](int i) { return a.q[i] <= b.q[i]; });
  }
  static M both(M a, M b) {
    return each_mask([&](int i) { return a.q[i] & b.q[i]; });
  }
  static uint32_t bits(M m) {
    uint32_t all = 0;
    for (int i = 0; i < 16; ++i) all |= (m.q[i / 4][i % 4] != 0 ? 1u : 0u) << i;
    return all;
  }
  static M mask(uint32_t bits) {
    M m;
    for (int i = 0; i < 16; ++i) m.q[i / 4][i % 4] = (bits >> i & 1u) != 0 ? -1 : 0;
    return m;
  }
  static F select(M m, F yes, F no) {
    return each([&](int i) { return m.q[i] ? yes.q[i] : no.q[i]; });
  }

  static float sum(F a) {
    const Quad quarter = (a.q[0] + a.q[2]) + (a.q[1] + a.q[3]);
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
  }
  static float largest(F a) {
    float most = a.q[0][0];
    for (int i = 1; i < 16; ++i) most = a.q[i / 4][i % 4] > most ? a.q[i / 4][i % 4] : most;
    return most;
  }
  static float lane0(F a) { return a.q[0][0]; }

  struct Sum {
    double lanes16[16] = {};
    void add(F x) {
      for (int i = 0; i < 16; ++i) lanes16[i] += static_cast<double>(x.q[i / 4][i % 4]);
    }
    void add_squares(F x) {
      for (int i = 0; i < 16; ++i) {
        const auto a = static_cast<double>(x.q[i / 4][i % 4]);
        lanes16[i] += a * a;
      }
    }
    void store(double* lanes) const { std::memcpy(lanes, lanes16, sizeof lanes16); }
  };

  static F quarter_turns(F angle, F* quarters) {
    F rest;
    for (int i = 0; i < 16; ++i) {
      const double a = static_cast<double>(angle.q[i / 4][i % 4]);
      const double n = std::nearbyint(a * kTwoOverPi);
      // Without a fused multiply-add the product must be exact: n has up to 31 bits, so the first part
      // has 20.
      constexpr double kHigh = 0x1.921fbp+0, kMiddle = kHalfPiHigh - kHigh;
      constexpr double kMiddleHigh = 0x1.5110bp-22;
      rest.q[i / 4][i % 4] = static_cast<float>(((a - n * kHigh) - n * kMiddleHigh) -
                                                n * ((kMiddle - kMiddleHigh) + kHalfPiLow));
      quarters->q[i / 4][i % 4] = static_cast<float>(n - 4 * std::floor(n / 4));
    }
    return rest;
  }

  static F complement_to_float(const uint32_t* words) {
    float x[16];
    for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(~words[i]);
    return load(x);
  }
  static void philox(uint32_t first, uint32_t position, uint32_t choice, uint64_t seed, uint32_t* words) {
    PhiloxWords<Simd>::fill(first, position, choice, seed, words);
  }

 private:
  template <typename Body>
  static F each(Body body) {
    F x;
    for (int i = 0; i < kQuads; ++i) x.q[i] = body(i);
    return x;
  }
  template <typename Body>
  static M each_mask(Body body) {
    M x;
    for (int i = 0; i < kQuads; ++i) x.q[i] = body(i);
    return x;
  }
  static Bits to_bits(Quad a) { return std::bit_cast<Bits>(a); }
  static Quad to_floats(Bits a) { return std::bit_cast<Quad>(a); }
};

}  // namespace qiao::cpu::generic
