#pragma once

#include "backend/ops/common.h"

namespace qiao {

// y[t, k] = x[t, k] * scale, or 0 where it is dropped (Srivastava et al. 2014): scale = F32(1 / (1 -
// probability)). Dropped is, with c = first_column + k, what word c mod 4 of Philox4x32-10 (backend/philox.h)
// with the key `seed` and the counter (c / 4, first_row + t, stream, 0) is below round(probability * 2^32):
// the same elements on every chip, in any batch or part of the columns, and again on the way back, which is
// this op on the gradient. With `add`, y + that, the product rounded by itself. Exact.
struct Dropout {
  Tensor x;               // F32 [T, K], rows contiguous
  Tensor y;               // F32 [T, K], rows contiguous; x itself, or apart from it
  float probability = 0;  // in [0, 1)
  uint64_t seed = 0;
  uint32_t stream = 0;        // which of the seed's masks
  uint32_t first_row = 0;     // of the mask; with T below 2^32
  uint32_t first_column = 0;  // of the mask; with K below 2^32
  bool add = false;

  void check() const;
  double flops() const;
  double bytes() const;
  uint32_t threshold() const;
  float scale() const;
};

}  // namespace qiao
