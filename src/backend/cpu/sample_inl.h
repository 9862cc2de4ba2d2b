// Plan: passes over a row of V logits, which stays in L2 between them; sums go over to float64 every four
// vectors, so that they are good to some units of F32 for any V and the same on every run.
//
// Drawing by Gumbel-max needs a random word for each kept token, but hardly ever its logarithms:
// z + g >= best  <=>  -log v <= exp(z - best), and -log v >= 1 - v. So a token can win only if
// 1 - v <= exp(z - best), which takes one exponential; those few that pass are scored exactly by the caller.
//
// The limit is arithmetic in L2. Reached on Zen 4 for V = 151936: greedy with its log-probability 57 us,
// temperature 245 us, with top-p 250 us where the logits are peaked and 790 us where they are flat.
#pragma once

#include <cmath>
#include <limits>

#include "backend/cpu/sample_kernels.h"
#include "backend/cpu/vector_math.h"

namespace qiao::cpu {

template <class V>
struct SampleKernel {
  using F = typename V::F;
  using Math = VectorMath<V>;
  static constexpr float kLeast = -std::numeric_limits<float>::infinity();

  static int64_t width(int64_t rest) { return rest < 16 ? rest : 16; }
  static F load(const float* x, int64_t rest) {  // lanes past the end: -infinity
    return rest >= 16 ? V::load(x) : V::select(V::first(rest), V::load_part(x, rest), V::set(kLeast));
  }

  static float largest(const float* x, int64_t count) {
    F most[4] = {V::set(kLeast), V::set(kLeast), V::set(kLeast), V::set(kLeast)};
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
      for (int n = 0; n < 4; ++n) most[n] = V::max(V::load(x + i + 16 * n), most[n]);  // NaN: the second
    }
    for (; i < count; i += 16) most[0] = V::max(load(x + i, count - i), most[0]);
    return V::largest(V::max(V::max(most[0], most[1]), V::max(most[2], most[3])));
  }

  static int64_t find(const float* x, int64_t count, float value) {
    const F wanted = V::set(value);
    for (int64_t i = 0; i < count; i += 16) {
      const int64_t lanes = width(count - i);
      const F here = load(x + i, count - i);
      const uint32_t equal = V::bits(V::both(V::at_most(here, wanted), V::at_most(wanted, here)));
      const uint32_t found = equal & (lanes < 16 ? (1u << lanes) - 1u : 0xffffu);
      if (found != 0) return i + __builtin_ctz(found);
    }
    return -1;
  }

  static double exp_sum(const float* x, int64_t count, float largest) {
    const F shift = V::set(largest);
    typename V::Sum sum;
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
      F e[4];
      for (int n = 0; n < 4; ++n) e[n] = Math::exp(V::sub(V::load(x + i + 16 * n), shift));
      sum.add(V::add(V::add(e[0], e[1]), V::add(e[2], e[3])));
    }
    for (; i < count; i += 16) sum.add(Math::exp(V::sub(load(x + i, count - i), shift)));
    return total(sum);
  }

  static void divide(const float* x, int64_t count, float divisor, float* out) {
    const F by = V::set(divisor);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) V::store(out + i, V::div(V::load(x + i), by));
    if (i < count) V::store_part(out + i, V::div(load(x + i, count - i), by), count - i);
  }

  static void mask(const int32_t* words, int64_t count, float* x) {
    const F least = V::set(kLeast);
    for (int64_t i = 0; i < count; i += 16) {
      const uint32_t bits = static_cast<uint32_t>(words[i / 32]) >> (i % 32) & 0xffffu;
      if (bits == 0xffffu) continue;
      const int64_t lanes = width(count - i);
      V::store_part(x + i, V::select(V::mask(bits), V::load_part(x + i, lanes), least), lanes);
    }
  }

  static int64_t between(const float* x, int64_t count, float after, float until, int32_t first_id,
                         SampleCandidate* out) {
    const F low = V::set(after), high = V::set(until);
    SampleCandidate* next = out;
    for (int64_t i = 0; i < count; i += 16) {
      const F here = load(x + i, count - i);
      uint32_t bits = V::bits(V::both(V::less(low, here), V::at_most(here, high)));
      for (; bits != 0; bits &= bits - 1) {
        const int64_t at = i + __builtin_ctz(bits);
        *next++ = {x[at], first_id + static_cast<int32_t>(at)};
      }
    }
    return next - out;
  }

  static void masses(const float* x, int64_t count, float largest, const float* steps, double* sums,
                     int64_t* counts) {
    typename V::Sum sum[kMassSteps];
    for (int s = 0; s < kMassSteps; ++s) counts[s] = 0;
    const F shift = V::set(largest), zero = V::set(0.0f);
    for (int64_t i = 0; i < count; i += 64) {
      F z[4], e[4];
      F most = V::set(kLeast);
      for (int n = 0; n < 4; ++n) {
        z[n] = i + 16 * n < count ? load(x + i + 16 * n, count - i - 16 * n) : V::set(kLeast);
        most = V::max(z[n], most);
      }
      // Most of a vocabulary lies below all steps.
      if (V::bits(V::at_most(V::set(steps[kMassSteps - 1]), most)) == 0) continue;
      for (int n = 0; n < 4; ++n) e[n] = Math::exp(V::sub(z[n], shift));
      for (int s = 0; s < kMassSteps; ++s) {
        const F step = V::set(steps[s]);
        F kept[4];
        uint64_t bits = 0;
        for (int n = 0; n < 4; ++n) {
          const auto in = V::at_most(step, z[n]);
          kept[n] = V::select(in, e[n], zero);
          bits = bits << 16 | V::bits(in);
        }
        if (bits == 0) continue;
        sum[s].add(V::add(V::add(kept[0], kept[1]), V::add(kept[2], kept[3])));
        counts[s] += __builtin_popcountll(bits);
      }
    }
    for (int s = 0; s < kMassSteps; ++s) sums[s] = total(sum[s]);
  }

  static uint64_t may_win(const GumbelScan& scan, int64_t first) {
    // No Gumbel is above 22.9; and F32's roundings are covered by the margins.
    constexpr float kMostGumbel = 23.0f, kMargin = 1.0f + 0x1p-14f;
    const float floor = scan.best - kMostGumbel > scan.least ? scan.best - kMostGumbel : scan.least;
    const F least = V::set(floor), best = V::set(scan.best);
    uint64_t open = 0;
    for (int n = 0; n < 4; ++n) {
      const int64_t at = first + 16 * n;
      if (at >= scan.count) break;
      open |= static_cast<uint64_t>(V::bits(V::at_most(least, load(scan.z + at, scan.count - at)))) << 16 * n;
    }
    if (open == 0) return 0;
    alignas(64) uint32_t words[64];
    V::philox(static_cast<uint32_t>(first / 4), scan.position, scan.choice, scan.seed, words);
    uint64_t winners = 0;
    for (int n = 0; n < 4; ++n) {
      const int64_t at = first + 16 * n;
      if ((open >> 16 * n & 0xffffu) == 0) continue;
      const F odds = V::mul(Math::exp(V::sub(load(scan.z + at, scan.count - at), best)), V::set(kMargin));
      const F chance = V::mul(V::complement_to_float(words + 16 * n), V::set(0x1p-32f));
      winners |= static_cast<uint64_t>(V::bits(V::at_most(chance, odds))) << 16 * n;
    }
    return winners & open;
  }

 private:
  static double total(const typename V::Sum& sum) {
    double lanes[16], all = 0;
    sum.store(lanes);
    for (int i = 0; i < 16; ++i) all += lanes[i];
    return all;
  }
};

}  // namespace qiao::cpu
