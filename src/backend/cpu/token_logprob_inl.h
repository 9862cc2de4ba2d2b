// Plan: one pass over a row of a piece, which lies in the L2 cache; the exponential is the limit.
#pragma once

#include "backend/cpu/token_logprob_kernels.h"
#include "backend/cpu/vector_math.h"

namespace qiao::cpu {

template <class V>
struct TokenLogprobKernel {
  using F = typename V::F;
  using Math = VectorMath<V>;

  static void gradients(const LogitGradients& row) {
    int64_t i = 0;
    for (; i + 16 <= row.count; i += 16) V::store(row.logits + i, gradient(row, i, V::load(row.logits + i)));
    if (const int64_t rest = row.count - i; rest > 0) {
      V::store_part(row.logits + i, gradient(row, i, V::load_part(row.logits + i, rest)), rest);
    }
  }

 private:
  static F gradient(const LogitGradients& row, int64_t i, F capped) {
    const F z = V::div(capped, V::set(row.temperature));
    const F p = Math::exp(V::sub(z, V::set(row.log_sum_exp)));
    float chosen[16] = {};
    if (row.label >= i && row.label < i + 16) chosen[row.label - i] = 1.0f;
    const F h = V::mul(V::sub(V::load(chosen), p), V::set(row.gradient));
    if (!(row.soft_cap > 0)) return h;
    const F share = V::div(capped, V::set(row.soft_cap));
    return V::mul(h, V::fnma(share, share, V::set(1.0f)));
  }
};

}  // namespace qiao::cpu
